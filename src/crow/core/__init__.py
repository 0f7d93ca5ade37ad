"""The method in tensors: consistency, perturbation, objective, collapse. Imports torch only."""

from crow.core.bounds import displacement, expansion_bound
from crow.core.collapse import collapse_score
from crow.core.consistency import (
    coarse_log_probs,
    consistency_loss,
    layer_consistency,
    output_consistency_loss,
    with_others,
)
from crow.core.objective import CrowLoss, crow_loss
from crow.core.perturbation import fgsm_perturbation, fgsm_step

__all__ = [
    "CrowLoss",
    "coarse_log_probs",
    "collapse_score",
    "consistency_loss",
    "crow_loss",
    "displacement",
    "expansion_bound",
    "fgsm_perturbation",
    "fgsm_step",
    "layer_consistency",
    "output_consistency_loss",
    "with_others",
]
