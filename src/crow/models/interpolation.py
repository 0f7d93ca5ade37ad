"""Interpolation between two states of a model's trained weights (Wortsman et al., WiSE-FT, arXiv 2109.01903)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


@contextmanager
def gathered(weight: nn.Parameter) -> Iterator[None]:
    """Within the context, a weight that DeepSpeed spreads over processes is whole; what the first writes, all get."""
    if not hasattr(weight, "ds_id"):
        yield
        return
    # Where weights are DeepSpeed's, it is installed.
    from deepspeed import zero  # noqa: PLC0415 # pyright: ignore[reportMissingImports]

    with zero.GatheredParameters([weight], modifier_rank=0):
        yield


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights that are trained, by name; whole, also where they are spread over processes."""
    copies = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            with gathered(weight):
                value = weight.detach()
                copies[name] = value.full_tensor() if isinstance(value, DTensor) else value.clone()
    return copies


@torch.no_grad()
def interpolate(model: nn.Module, start: dict[str, Tensor], share: float) -> None:
    """Move the trained weights to `start + share (weights - start)`.

    Args:
        model: changed in place. Its weights may have been spread over processes since `start` was taken.
        start: whole weights by name, from `trained_weights`.
        share: how much of the way is kept, in [0, 1].
    """
    for name, weight in model.named_parameters():
        if name in start:
            with gathered(weight):
                origin = start[name].to(weight.device)
                if isinstance(weight, DTensor):
                    origin = distribute_tensor(origin, weight.device_mesh, weight.placements)
                weight.copy_(origin + share * (weight - origin))
