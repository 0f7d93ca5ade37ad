"""The weight matrices of the decoder layers, whatever the family calls and orients them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from crow.errors import ArchitectureError, ModelError

SKETCH_ITERATIONS = 6
"""Of the randomized estimate of singular values."""


@dataclass(frozen=True)
class Matrix:
    """One weight matrix.

    Attributes:
        name: of its module inside the decoder layer, and of the parameter where there are several.
        weight: a view (..., out, in) of the parameter; writing to it changes the model. A mixture's experts are
            (experts, out, in).
        module: the linear module, whose inputs can be watched; None for experts, which are no modules.
    """

    name: str
    weight: Tensor
    module: nn.Module | None


def matrices(layer: nn.Module) -> list[Matrix]:
    """All weight matrices of a decoder layer; adapters should be merged before."""
    found = []
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            found.append(Matrix(name, module.weight.data, module))
        elif isinstance(module, Conv1D):
            found.append(Matrix(name, module.weight.data.T, module))
        elif not type(module).__module__.startswith("torch.nn"):
            own = module.named_parameters(recurse=False)
            found += [Matrix(f"{name}.{key}", value.data, None) for key, value in own if value.ndim == 3]
    return found


DOWN_PROJECTIONS = (
    *("mlp.down_proj", "ffn.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h"),
    *("fc2", "mlp.fc2", "mlp.fc_out"),
)
"""What families call the matrix that brings an MLP's inner activations back to the residual stream."""


def down_projections(layer: nn.Module) -> list[Matrix]:
    """The down projections of a decoder layer's MLP, usually one; none where it is a mixture of experts."""
    return [matrix for matrix in matrices(layer) if matrix.name in DOWN_PROJECTIONS and matrix.module is not None]


def down_projection(layer: nn.Module) -> tuple[nn.Module, Tensor]:
    """The down projection of a decoder layer's MLP and its weight, (out, in): writing to it changes the model.

    Raises:
        ArchitectureError: if it has none of `DOWN_PROJECTIONS`, as a mixture of experts has not.
    """
    for matrix in down_projections(layer):
        if matrix.module is not None:
            return matrix.module, matrix.weight
    raise ArchitectureError(
        f"expected one of {', '.join(DOWN_PROJECTIONS)} in a layer of type {type(layer).__name__}, found none; choose "
        "a model whose MLPs are no mixture"
    )


@torch.no_grad()
def leading_directions(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first singular values and vectors of a matrix, to about a hundredth: a randomized estimate, always the same.

    Args:
        weight: (out, in).
        rank: how many are estimated, at most; the last ones least exactly.

    Returns:
        `U` (out, r), the values (r,), descending, and `V` (in, r), in float32.

    Raises:
        ModelError: if the matrix holds what is no number.
    """
    if not bool(weight.isfinite().all()):
        raise ModelError(f"expected finite weights, got NaN or infinity in a matrix of {tuple(weight.shape)}")
    with torch.random.fork_rng(devices=[weight.device] if weight.device.type == "cuda" else []):
        torch.manual_seed(0)
        return torch.svd_lowrank(weight.detach().float(), q=min(rank, *weight.shape), niter=SKETCH_ITERATIONS)


@dataclass
class Inputs:
    """What entered a module in the last forward pass: (tokens, in), rows of a batch one after another."""

    tokens: Tensor = field(default_factory=lambda: torch.zeros(0, 0))


@contextmanager
def watch_tokens(module: nn.Module) -> Iterator[Inputs]:
    """Within the context, a forward pass leaves what enters the module in the yielded object."""
    seen = Inputs()

    def look(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.tokens = args[0].detach().reshape(-1, args[0].shape[-1])

    handle = module.register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


@dataclass
class InputNorms:
    """Sums over real tokens of what enters linear modules: `squares` (in,) of x^2 and `sizes` (in,) of |x|, by name."""

    squares: dict[str, Tensor] = field(default_factory=dict)
    sizes: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def watch_inputs(chosen: Sequence[Matrix], real: Tensor) -> Iterator[InputNorms]:
    """Within the context, passes add up what enters the chosen matrices' modules.

    Args:
        chosen: matrices; those without a module are left out.
        real: (batch, seq) boolean, at real tokens.
    """
    norms = InputNorms()

    def look(name: str, given: Tensor) -> None:
        # A mixture hands its router all tokens in one row after another.
        tokens = given.detach().reshape(-1, given.shape[-1])[real.flatten().to(given.device)].float()
        for sums, value in ((norms.squares, tokens.pow(2)), (norms.sizes, tokens.abs())):
            sums[name] = sums.get(name, torch.zeros((), device=given.device)) + value.sum(dim=0)

    def hook(name: str):  # noqa: ANN202 a forward pre-hook
        return lambda _module, args: look(name, args[0])

    handles = [matrix.module.register_forward_pre_hook(hook(matrix.name)) for matrix in chosen if matrix.module]
    try:
        yield norms
    finally:
        for handle in handles:
            handle.remove()
