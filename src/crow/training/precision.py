"""Whether trainings and searches compute their matrix products in bfloat16; the weights stay as they are."""

from __future__ import annotations

import torch

from crow.models.language_model import LanguageModel

PRECISIONS = ("auto", "float32", "bfloat16")
"""`auto` is bfloat16 where the hardware multiplies in it, else what the weights are in (float32 stands for both)."""


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; emulated, it would be slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        known = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    return False


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
