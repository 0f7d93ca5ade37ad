"""Taking a model's trained weights, putting them back, and interpolating between two states of them.

The last is WiSE-FT (Wortsman et al., arXiv 2109.01903).
"""

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
def put_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a model whole weights by name, also where its own have been spread over processes since they were taken."""
    for name, weight in model.named_parameters():
        if name in weights:
            with gathered(weight):
                value = weights[name].to(weight.device)
                if isinstance(weight, DTensor):
                    value = distribute_tensor(value, weight.device_mesh, weight.placements)
                weight.copy_(value)


def interpolate(model: nn.Module, start: dict[str, Tensor], share: float) -> None:
    """Move the trained weights to `start + share (weights - start)`.

    Args:
        model: changed in place.
        start: from `trained_weights`.
        share: how much of the way is kept, in [0, 1].
    """
    present = trained_weights(model)
    put_weights(model, {name: origin + share * (present[name] - origin) for name, origin in start.items()})
