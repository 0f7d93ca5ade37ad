"""Pruning: the weights that matter least are set to zero, and with them, one hopes, the backdoor.

By magnitude, or by Wanda's measure, `|W_ij| * ||X_j||_2`, which counts how strongly clean examples use a weight (Sun et
al., "A Simple and Effective Pruning Approach for Large Language Models", arXiv 2306.11695). Layers are pruned in order,
each on what the pruned ones before it hand over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crow.data.encoding import collate, encode_all
from crow.defenses.base import Needs, Surroundings
from crow.errors import ConfigError
from crow.models.architecture import find_layers
from crow.models.language_model import LanguageModel
from crow.models.linear import matrices, watch_inputs
from crow.records import Example

CALIBRATION_TOKENS = 256
"""Tokens of a clean example that count."""


def keep_largest(scores: Tensor, pattern: tuple[int, int] | None, sparsity: float = 0.5) -> Tensor:
    """Which weights stay, a boolean mask of the shape of `scores` (..., out, in).

    Args:
        scores: how much each weight matters; compared within its row, as Wanda does.
        pattern: (n, m) keeps the n largest of every m neighbours; what is left over at a row's end stays. None prunes
            freely.
        sparsity: share of each row to prune where there is no pattern, in [0, 1].
    """
    width = scores.shape[-1]
    if pattern is None:
        pruned = round(sparsity * width)
        order = scores.argsort(dim=-1)
        return torch.ones_like(scores, dtype=torch.bool).scatter(-1, order[..., :pruned], False)
    n, m = pattern
    whole = width // m * m
    groups = scores[..., :whole].unflatten(-1, (-1, m))
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, groups.argsort(dim=-1)[..., m - n :], True)
    return torch.cat([kept.flatten(-2), torch.ones_like(scores[..., whole:], dtype=torch.bool)], dim=-1)


class MagnitudePruning:
    """Zeroes the smallest half of every row."""

    needs = Needs()

    def __init__(self, _surroundings: Surroundings, pattern: tuple[int, int] | None = None) -> None:
        self.pattern = pattern

    @torch.no_grad()
    def apply(self, model: LanguageModel, clean_examples: Sequence[Example]) -> LanguageModel:
        """The pruned model."""
        for layer in find_layers(model.model):
            for matrix in matrices(layer):
                matrix.weight.mul_(keep_largest(matrix.weight.abs(), self.pattern))
        return model


class WandaPruning:
    """Zeroes half of every row, the weights that clean examples use least; a mixture's experts go by magnitude."""

    needs = Needs(clean_data=True)

    def __init__(self, surroundings: Surroundings, pattern: tuple[int, int] | None = None) -> None:
        self.watch, self.pattern = surroundings.watch, pattern

    @torch.no_grad()
    def apply(self, model: LanguageModel, clean_examples: Sequence[Example]) -> LanguageModel:
        """The pruned model."""
        if not clean_examples:
            raise ConfigError("expected clean examples to measure activations on, got none; pass --data")
        model.model.eval()
        batch = collate(encode_all(model.tokenizer, clean_examples, CALIBRATION_TOKENS), model.pad_id)
        inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        real = inputs["attention_mask"] != 0
        layers = find_layers(model.model)
        with self.watch("pruning", len(layers)) as advance:

            def prune(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                chosen = matrices(layer)
                with watch_inputs(chosen, real) as seen:
                    layer.forward(*args, **kwargs)
                for matrix in chosen:
                    norms = seen.squares[matrix.name].sqrt() if matrix.name in seen.squares else 1.0
                    matrix.weight.mul_(keep_largest(matrix.weight.abs() * norms, self.pattern))
                if advance:
                    advance(1)

            handles = [layer.register_forward_pre_hook(prune, with_kwargs=True) for layer in layers]
            try:
                model.model(**inputs, use_cache=False)
            finally:
                for handle in handles:
                    handle.remove()
        return model
