"""The cosine of two hidden states at each token, with a backward pass of its own."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@functools.cache
def has_triton() -> bool:
    """Whether kernels can be compiled; PyTorch's builds for GPUs bring Triton along."""
    return find_spec("triton") is not None


def fused(lower: Tensor, upper: Tensor) -> bool:
    """Whether kernels do the work: they read each state once, where a chain of operations does so several times."""
    return lower.is_cuda and torch.float64 not in (lower.dtype, upper.dtype) and has_triton()


class TokenCosine(torch.autograd.Function):
    """`c = l . u / (|l| |u|)` at each token; `dc/dl = (u / |u| - c l / |l|) / |l|`, and the same with l and u changed.

    Kept for the backward pass are the two states as they are, which the layers keep anyway, and three numbers a token:
    no normalized copies, none in a wider type.
    """

    @staticmethod
    def forward(ctx: Any, lower: Tensor, upper: Tensor) -> Tensor:
        """(batch, seq) of two states (batch, seq, dim), float32 at least; 0 where one has no direction."""
        if fused(lower, upper):
            from crow.core import cosine_triton  # noqa: PLC0415 only where there is Triton

            cosine, *inverses = cosine_triton.token_cosine(lower, upper)
            ctx.save_for_backward(lower, upper, cosine, *inverses)
            return cosine
        # Half precision loses the small angles this measures: 1 - cos is about 0.04 on real models.
        wide = torch.promote_types(lower.dtype, torch.float32)
        low, up = lower.to(wide), upper.to(wide)
        inverses = [torch.where(norm > 0, 1 / norm, 0) for norm in (low.norm(dim=-1), up.norm(dim=-1))]
        cosine = (low * up).sum(dim=-1) * inverses[0] * inverses[1]
        ctx.save_for_backward(lower, upper, cosine, *inverses)
        return cosine

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        """Gradients of both states, zero at tokens whose cosine counts for nothing, whatever stands there."""
        lower, upper, cosine, inverse_lower, inverse_upper = ctx.saved_tensors
        if fused(lower, upper):
            from crow.core.cosine_triton import state_gradient  # noqa: PLC0415 only where there is Triton

            needs, known = ctx.needs_input_grad, (gradient, cosine)
            return (
                state_gradient(lower, upper, *known, inverse_lower, inverse_upper) if needs[0] else None,
                state_gradient(upper, lower, *known, inverse_upper, inverse_lower) if needs[1] else None,
            )
        cross = gradient * inverse_lower * inverse_upper

        def of(own: Tensor, other: Tensor, inverse: Tensor) -> Tensor:
            turn = cross[..., None] * other - (gradient * cosine * inverse**2)[..., None] * own
            return turn.masked_fill_((gradient == 0)[..., None], 0).to(own.dtype)

        return (
            of(lower, upper, inverse_lower) if ctx.needs_input_grad[0] else None,
            of(upper, lower, inverse_upper) if ctx.needs_input_grad[1] else None,
        )
