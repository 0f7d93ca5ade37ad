"""The adversary of CROW: one FGSM step on the token embeddings (arXiv 2411.12768, eq. 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def fgsm_perturbation(
    embeddings: Tensor,
    loss: Callable[[Tensor], Tensor],
    epsilon: float,
    mask: Tensor | None = None,
) -> Tensor:
    """`eps * sign(grad_{H^(0)} L(H^(0)))`, the step of size eps that raises `loss` the most (L-inf).

    The gradient is taken with respect to the embeddings only; the `.grad` of parameters is neither
    read nor written.

    Args:
        embeddings: (batch, seq, dim), `H^(0)`.
        loss: from embeddings to a scalar, `L_cons` in CROW.
        epsilon: step size >= 0 in the units of the embeddings.
        mask: (batch, seq), non-zero where a token may be perturbed; everywhere by default.

    Returns:
        (batch, seq, dim), detached, each entry in {-eps, 0, eps}.

    Raises:
        ValueError: for an epsilon that is negative or not a number.
    """
    if not epsilon >= 0:
        raise ValueError(f"expected epsilon >= 0, got {epsilon}")
    leaf = embeddings.detach().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    return fgsm_step(gradient, epsilon, mask)


def fgsm_step(gradient: Tensor, epsilon: float, mask: Tensor | None = None) -> Tensor:
    """`eps * sign(gradient)`: `fgsm_perturbation` where the gradient is known already.

    Args:
        gradient: (batch, seq, dim), of the loss with respect to the embeddings.
        epsilon: step size.
        mask: (batch, seq), non-zero where a token may be perturbed; everywhere by default.

    Returns:
        (batch, seq, dim), each entry in {-eps, 0, eps}.
    """
    step = epsilon * gradient.sign()
    return step if mask is None else step * (mask != 0).unsqueeze(-1)
