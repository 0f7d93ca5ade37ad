"""The spectral norm of each layer's Jacobian at real inputs: how much it can blow up an infinitesimal change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from crow.data.encoding import encode_all
from crow.inversion.probe import frozen
from crow.models.architecture import find_layers
from crow.models.generation import Progress
from crow.models.language_model import LanguageModel
from crow.records import Example

ITERATIONS = 60
TOLERANCE = 1e-3
"""Relative change of the norm at which the iteration ends."""

Layer = Callable[[Tensor], Tensor]


def spectral_norm(function: Layer, at: Tensor, generator: torch.Generator) -> float:
    """The largest singular value of the Jacobian of `function` at a point, by power iteration on `J^T J`.

    Args:
        function: from a tensor of the shape of `at` to one of any shape, differentiable.
        at: the point.
        generator: of the start.
    """
    vector = torch.randn(at.shape, generator=generator).to(at.device, at.dtype)
    vector, norm = vector / vector.norm(), 0.0
    for _ in range(ITERATIONS):
        # By two backward passes: not every operation has a forward-mode derivative.
        _, image = torch.autograd.functional.jvp(function, at, vector)
        _, back = torch.autograd.functional.vjp(function, at, image)
        assert isinstance(back, Tensor)
        size = back.norm()
        # |J^T J v| is the square of the largest singular value once v is its vector, and never more than that.
        previous, norm = norm, float(size.sqrt())
        if norm == 0 or abs(norm - previous) <= TOLERANCE * norm:
            break
        vector = back / size
    return norm


def layer_functions(lm: LanguageModel, example: Example) -> list[tuple[Layer, Tensor]]:
    """Each layer as a function of the hidden states (1, seq, dim) of all the prompt's tokens, with its input there."""
    ids = torch.tensor([encode_all(lm.tokenizer, [example])[0].prompt_ids])
    found: list[tuple[Layer, Tensor]] = []

    def keep(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        others = dict(kwargs)
        hidden = args[0] if args else others.pop("hidden_states")

        def function(hidden: Tensor) -> Tensor:
            output = layer.forward(hidden, *args[1:], **others)
            return output[0] if isinstance(output, tuple) else output

        found.append((function, hidden.detach()))

    with ExitStack() as stack, torch.no_grad():
        for layer in find_layers(lm.model):
            stack.callback(layer.register_forward_pre_hook(keep, with_kwargs=True).remove)
        lm.model(input_ids=ids.to(lm.device), use_cache=False)
    return found


def jacobian_norms(
    lm: LanguageModel, examples: Sequence[Example], seed: int = 0, progress: Progress | None = None
) -> list[list[float]]:
    """For each example, the spectral norm of every layer's Jacobian at its prompt.

    Args:
        lm: the model, whole and in evaluation mode.
        examples: their responses are left out.
        seed: of the starts.
        progress: called with 1 after each example.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    # The fused attention kernels cannot be differentiated twice.
    with frozen(lm.model), sdpa_kernel(SDPBackend.MATH):
        for example in examples:
            found.append([spectral_norm(layer, at, generator) for layer, at in layer_functions(lm, example)])
            if progress:
                progress(1)
    return found
