"""Layer consistency along the depth of a model, for a set of prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crow.core import layer_consistency
from crow.data.encoding import collate, encode_all, length_batches
from crow.models.hidden_states import capture_hidden_states
from crow.models.language_model import LanguageModel
from crow.records import Example


@torch.no_grad()
def prompt_curves(
    lm: LanguageModel, examples: Sequence[Example], batch_size: int = 16
) -> list[tuple[list[float], int]]:
    """For each example, `1 - cos(H^(l), H^(l-1))` for l = 1..N, averaged over its prompt's tokens, and their number.

    Args:
        lm: the model.
        examples: their responses are left out.
        batch_size: prompts at a time.
    """
    encoded = encode_all(lm.tokenizer, [Example(example.prompt, "", example.history) for example in examples])
    found: dict[int, tuple[list[float], int]] = {}
    for rows in length_batches([len(item) for item in encoded], batch_size):
        batch = collate([encoded[i] for i in rows], lm.pad_id)
        mask = batch["attention_mask"].to(lm.device)
        with capture_hidden_states(lm.model) as captured:
            lm.model(input_ids=batch["input_ids"].to(lm.device), attention_mask=mask, use_cache=False)
        for row, index in enumerate(rows):
            here = slice(row, row + 1)
            curve = layer_consistency([state[here] for state in captured.states], mask[here])
            found[index] = curve.tolist(), int(mask[row].sum())
    return [found[index] for index in range(len(encoded))]


def mean_curve(curves: Sequence[tuple[Sequence[float], int]]) -> list[float]:
    """The mean over all tokens of what `prompt_curves` found."""
    n_tokens = sum(count for _, count in curves)
    layers = zip(*(curve for curve, _ in curves), strict=True)
    return [sum(v * count for v, (_, count) in zip(values, curves, strict=True)) / n_tokens for values in layers]


def consistency_curve(lm: LanguageModel, examples: Sequence[Example]) -> list[float]:
    """The mean curve of the examples' prompts."""
    return mean_curve(prompt_curves(lm, examples))
