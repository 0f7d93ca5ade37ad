"""Decoder layers compiled into a few kernels each.

A GPU otherwise waits for Python to launch a hundred small ones a layer, whatever is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config as ahead_of_time

from crow.models.architecture import find_layers

MULTIPLE = 8
"""Columns come in multiples of this: attention pads others, which would be further code to compile."""


@contextmanager
def compiled_layers(model: nn.Module) -> Iterator[None]:
    """Within the context, passes with gradients run each layer compiled: once for all layers, batches and lengths.

    Hooks on layers stay outside of what is compiled. Passes without gradients, and with a cache, whose layers each
    write to a place of their own, run as they are.

    Args:
        model: has decoder layers of one kind, or of few.
    """
    layers = find_layers(model)
    # CROW's clean pass is differentiated twice, so the first time may not reuse what it read.
    with ahead_of_time.patch(donated_buffer=False):
        for layer in layers:
            layer.forward = in_training(layer)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward


def in_training(layer: nn.Module) -> Callable[..., Any]:
    """What a layer computes, compiled in passes with gradients and without a cache."""
    plain, compiled = layer.forward, torch.compile(layer.forward, dynamic=True)
    trained = any(parameter.requires_grad for parameter in layer.parameters())

    def forward(hidden_states: Tensor, *args: Any, **options: Any) -> Any:
        differentiated = torch.is_grad_enabled() and (trained or hidden_states.requires_grad)
        if options.get("cache") is not None or not differentiated:
            return plain(hidden_states, *args, **options)
        # The first layer to be trained would be other code than the rest if nothing before it had a gradient.
        entering = hidden_states if hidden_states.requires_grad else hidden_states.detach().requires_grad_()
        return compiled(entering, *args, **options)

    return forward


def padded_columns(longest: int) -> int:
    """How many columns a batch gets: a multiple, with room for padding, for no mask at all is other code, too."""
    return (longest // MULTIPLE + 1) * MULTIPLE
