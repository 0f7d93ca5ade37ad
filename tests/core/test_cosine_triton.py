"""The kernels against the chain of operations, in Triton's interpreter, which needs no GPU but Triton itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crow.core import cosine
from crow.core.cosine import TokenCosine

pytest.importorskip("triton", reason="PyTorch's builds for CPUs bring no Triton along; pip install triton")


def states(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two states of 37 columns; the first token of the first has no direction, the last of the second is NaN."""
    lower, upper = (torch.randn(2, 5, 37, dtype=dtype) for _ in range(2))
    lower[0, 0] = 0
    upper[1, 4] = float("nan")
    return lower.requires_grad_(True), upper.requires_grad_(True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_give_what_the_operations_give(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, weights = states(dtype), torch.randn(2, 5)
    weights[1, 4] = 0  # padding
    found = []
    for fused in (False, True):
        monkeypatch.setattr(cosine, "fused", lambda *_, fused=fused: fused)
        value = TokenCosine.apply(*pair)
        found.append((value.detach(), *torch.autograd.grad(value, pair, weights)))
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, equal_nan=True)


def test_columns_in_another_order_are_read_right(monkeypatch: pytest.MonkeyPatch) -> None:
    lower, upper = (torch.randn(3, 16, 4).transpose(1, 2) for _ in range(2))
    expected = TokenCosine.apply(lower, upper)
    monkeypatch.setattr(cosine, "fused", lambda *_: True)
    torch.testing.assert_close(TokenCosine.apply(lower, upper), expected)
    assert TokenCosine.apply(lower[:0], upper[:0]).shape == (0, 4)
