"""Interpolation between two states of a model's trained weights (Wortsman et al., WiSE-FT, arXiv 2109.01903)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights that are trained, by name; whole, also where they are spread over processes (FSDP 2)."""
    trained = ((name, weight.detach()) for name, weight in model.named_parameters() if weight.requires_grad)
    return {name: w.full_tensor() if isinstance(w, DTensor) else w.clone() for name, w in trained}


@torch.no_grad()
def interpolate(model: nn.Module, start: dict[str, Tensor], share: float) -> None:
    """Move the trained weights to `start + share (weights - start)`.

    Args:
        model: changed in place. Its weights may have been cut up over processes (FSDP 2) since `start` was taken.
        start: whole weights by name, from `trained_weights`.
        share: how much of the way is kept, in [0, 1].
    """
    for name, weight in model.named_parameters():
        if name in start:
            origin = start[name].to(weight.device)
            if isinstance(weight, DTensor):
                origin = distribute_tensor(origin, weight.device_mesh, weight.placements)
            weight.copy_(origin + share * (weight - origin))
