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


def lookalikes(probe: Probe, perturbations: Sequence[Perturbation], count: int) -> list[str]:
    """The texts of the tokens whose states are most like a perturbation, by the highest cosine over all of them.

    Args:
        probe: the model, at rest, and the words of its template.
        perturbations: soft triggers, in any layers.
        count: texts wanted.
    """
    best: Tensor | None = None
    for layer in sorted({perturbation.layer for perturbation in perturbations}):
        states = token_states(probe, layer)
        vectors = torch.stack([p.vector for p in perturbations if p.layer == layer]).float()
        # What all tokens share says nothing about any of them.
        own = functional.normalize(states - states.mean(dim=0), dim=1)
        cosines = (own @ functional.normalize(vectors, dim=1).T).amax(dim=1)
        best = cosines if best is None else torch.maximum(best, cosines)
    return [] if best is None else plain_words(probe.lm.tokenizer, best.argsort(descending=True).tolist(), count)


@torch.no_grad()
def token_states(probe: Probe, layer: int) -> Tensor:
    """`H^(l)` (vocab, dim) of every token right after what all of the probe's prompts begin with, in float32."""
    found: list[Tensor] = []

    def keep(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args[0] if args else kwargs["hidden_states"])[:, -1].float())
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
    return torch.cat(found)
