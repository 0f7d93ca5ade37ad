"""Whether trainings and searches compute their matrix products in bfloat16; the weights stay as they are."""

from __future__ import annotations

import torch

from crow.models.hardware import multiplies_bfloat16
from crow.models.language_model import LanguageModel

PRECISIONS = ("auto", "float32", "bfloat16")
"""`auto` is bfloat16 where the hardware multiplies in it, else what the weights are in (float32 stands for both)."""


def autocast(lm: LanguageModel, precision: str) -> torch.autocast:
    """The context in which a model runs at that precision, one of `PRECISIONS`."""
    return torch.autocast(lm.device.type, torch.bfloat16, enabled=autocast_wanted(precision, lm.device, lm.dtype))


def autocast_wanted(precision: str, device: torch.device, weights: torch.dtype) -> bool:
    """Whether a model runs under bfloat16 autocast.

    Args:
        precision: one of `PRECISIONS`.
        device: of the model.
        weights: dtype of the model; one in half precision already needs no casting.
    """
    if weights != torch.float32:
        return False
    return precision == "bfloat16" or (precision == "auto" and multiplies_bfloat16(device))
