"""Quantization: weights rounded to few bits, as a deployer would to save memory; small changes may break a backdoor.

Weight-only round-to-nearest, computed in the weights' own dtype: what a quantized model says, not how fast it says it.
One scale for a row in 8 bits; in 4 bits, scale and zero point for every 64 neighbours. Embeddings and head stay as they
are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crow.defenses.base import Needs, Surroundings
from crow.models.architecture import find_layers
from crow.models.language_model import LanguageModel
from crow.models.linear import matrices
from crow.records import Example

GROUP = 64


def round_to_nearest(weight: Tensor, bits: int, group: int | None) -> Tensor:
    """`weight` (..., in) rounded to `2^bits` levels.

    Args:
        weight: any weights.
        bits: per weight.
        group: neighbours that share a scale and a zero point, the last ones fewer; None takes whole rows and no zero
            point.
    """
    if group is None:
        scale = weight.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
        scale = torch.where(scale > 0, scale, 1)
        return (weight / scale).round() * scale
    parts = []
    for part in weight.split(group, dim=-1):
        low, high = part.amin(dim=-1, keepdim=True), part.amax(dim=-1, keepdim=True)
        scale = (high - low) / (2**bits - 1)
        scale = torch.where(scale > 0, scale, 1)
        parts.append(((part - low) / scale).round() * scale + low)
    return torch.cat(parts, dim=-1)


class Quantization:
    """Rounds the weights of all layers."""

    needs = Needs()

    def __init__(self, _surroundings: Surroundings, bits: int) -> None:
        self.bits, self.group = bits, None if bits == 8 else GROUP

    @torch.no_grad()
    def apply(self, model: LanguageModel, clean_examples: Sequence[Example]) -> LanguageModel:
        """The model with rounded weights."""
        for layer in find_layers(model.model):
            for matrix in matrices(layer):
                matrix.weight.copy_(round_to_nearest(matrix.weight.float(), self.bits, self.group))
        return model
