"""The objective of CROW: `L = L_LM(clean) + alpha * L_cons(perturbed)` (arXiv 2411.12768, eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class CrowLoss:
    """The terms of one evaluation of the objective, each a scalar tensor.

    Attributes:
        language_modeling: `L_LM`, mean cross-entropy of the response tokens.
        consistency: `L_cons` on the perturbed input, unweighted.
        total: what is minimized.
    """

    language_modeling: Tensor
    consistency: Tensor
    total: Tensor


def crow_loss(language_modeling: Tensor, consistency: Tensor, alpha: float) -> CrowLoss:
    """`L_LM + alpha * L_cons`, keeping the terms.

    Raises:
        ValueError: for an alpha that is negative or not a number.
    """
    if not alpha >= 0:
        raise ValueError(f"expected alpha >= 0, got {alpha}")
    return CrowLoss(language_modeling, consistency, language_modeling + alpha * consistency)
