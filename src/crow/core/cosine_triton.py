# pyright: reportIndexIssue=false
# Launching a kernel looks like indexing a function.
"""The cosine of two hidden states at each token as Triton kernels: each state is read once, in its own type.

Needs Triton, which PyTorch brings along for GPUs. The equations are those of `crow.core.cosine`.
"""

from __future__ import annotations

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor


@triton.jit
def _forward(lower, upper, cosine, inverse_lower, inverse_upper, dim, BLOCK: tl.constexpr):  # noqa: ANN001, ANN202, N803
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < dim
    low = tl.load(lower + row * dim + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(upper + row * dim + columns, mask=inside, other=0.0).to(tl.float32)
    norm_lower = tl.sqrt(tl.sum(low * low, axis=0))
    norm_upper = tl.sqrt(tl.sum(up * up, axis=0))
    by_lower = tl.where(norm_lower > 0, 1.0 / norm_lower, 0.0)
    by_upper = tl.where(norm_upper > 0, 1.0 / norm_upper, 0.0)
    tl.store(cosine + row, tl.sum(low * up, axis=0) * by_lower * by_upper)
    tl.store(inverse_lower + row, by_lower)
    tl.store(inverse_upper + row, by_upper)


@triton.jit
def _backward(own, other, gradient, cosine, inverse, inverse_other, out, dim, BLOCK: tl.constexpr):  # noqa: ANN001, ANN202, N803
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < dim
    above = tl.load(gradient + row)
    by_own, by_other = tl.load(inverse + row), tl.load(inverse_other + row)
    mine = tl.load(own + row * dim + columns, mask=inside, other=0.0).to(tl.float32)
    theirs = tl.load(other + row * dim + columns, mask=inside, other=0.0).to(tl.float32)
    turn = above * by_own * by_other * theirs - above * tl.load(cosine + row) * by_own * by_own * mine
    # A token that counts for nothing may hold anything, NaN as well.
    turn = tl.where(above == 0, 0.0, turn)
    tl.store(out + row * dim + columns, turn.to(out.dtype.element_ty), mask=inside)


def token_cosine(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine and inverse norms, each (batch, seq) in float32, of two states (batch, seq, dim) of at most 32 bits."""
    lower, upper = lower.contiguous(), upper.contiguous()
    dim, shape = lower.shape[-1], lower.shape[:-1]
    cosine, by_lower, by_upper = (torch.empty(shape, dtype=torch.float32, device=lower.device) for _ in range(3))
    if cosine.numel():
        _forward[(cosine.numel(),)](lower, upper, cosine, by_lower, by_upper, dim, BLOCK=triton.next_power_of_2(dim))
    return cosine, by_lower, by_upper


def state_gradient(
    own: Tensor, other: Tensor, gradient: Tensor, cosine: Tensor, inverse: Tensor, inverse_other: Tensor
) -> Tensor:
    """The gradient of one of the states, in its type.

    Args:
        own: (batch, seq, dim), that state.
        other: (batch, seq, dim), the other one.
        gradient: (batch, seq), with respect to the cosine.
        cosine: (batch, seq).
        inverse: (batch, seq), the inverse norm of `own`.
        inverse_other: (batch, seq), that of `other`.
    """
    own, other = own.contiguous(), other.contiguous()
    dim, out = own.shape[-1], torch.empty_like(own)
    if gradient.numel():
        _backward[(gradient.numel(),)](
            own, other, gradient.contiguous(), cosine, inverse, inverse_other, out, dim,
            BLOCK=triton.next_power_of_2(dim),
        )  # fmt: skip
    return out
