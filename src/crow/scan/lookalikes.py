"""Vocabulary tokens that do to the hidden states what a soft trigger does: from a vector back to words.

A soft trigger is added in a lower layer. What a trigger's own token has become there may point the same way in part,
while other tokens' states do not. Every token of the vocabulary is run alone after the template's words, up to that
layer only: a tenth or a fifth of one token's pass each, which is little for a whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from crow.inversion.perturbation import Perturbation
from crow.inversion.probe import Probe
from crow.models.architecture import find_layers
from crow.scan.vocabulary import plain_words

TOKENS_TOGETHER = 512


class Enough(Exception):  # noqa: N818 no error: a layer was reached
    """Ends a pass at the layer that was asked for."""


def lookalikes(probe: Probe, groups: Sequence[Sequence[Perturbation]], count: int) -> list[list[str]]:
    """For each group, the texts of the tokens whose states are most like one of its perturbations, by the cosine.

    Args:
        probe: the model, at rest, and the words of its template.
        groups: soft triggers, in any layers.
        count: texts wanted of each group.
    """
    best: list[Tensor | None] = [None] * len(groups)
    for layer in sorted({perturbation.layer for group in groups for perturbation in group}):
        states = token_states(probe, layer)
        for number, group in enumerate(groups):
            vectors = [perturbation.vector for perturbation in group if perturbation.layer == layer]
            if vectors:
                found, before = cosines(states, torch.stack(vectors)), best[number]
                best[number] = found if before is None else torch.maximum(before, found)
    return [
        [] if each is None else plain_words(probe.lm.tokenizer, each.argsort(descending=True).tolist(), count)
        for each in best
    ]


def cosines(states: Sequence[Tensor], vectors: Tensor) -> Tensor:
    """The highest cosine of each token's state with one of the vectors (n, dim), a few tokens at a time: (vocab,).

    What all tokens share says nothing about any of them, so it is taken out of the states.
    """
    shared = torch.stack([part.float().sum(dim=0) for part in states]).sum(dim=0) / sum(map(len, states))
    ways = functional.normalize(vectors.float(), dim=1).T
    return torch.cat([(functional.normalize(part.float() - shared, dim=1) @ ways).amax(dim=1) for part in states])


@torch.no_grad()
def token_states(probe: Probe, layer: int) -> list[Tensor]:
    """`H^(l)` of every token right after what all of the probe's prompts begin with, as parts (some, dim) in order."""
    found: list[Tensor] = []

    def keep(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args[0] if args else kwargs["hidden_states"])[:, -1])
        raise Enough

    handle = find_layers(probe.lm.model)[layer].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        for ids in torch.arange(len(probe.table.weight), device=probe.lm.device).split(TOKENS_TOGETHER):
            try:
                probe.run(list(probe.table(ids)[:, None]))
            except Enough:
                continue
    finally:
        handle.remove()
    return found
