"""Whether trainings and searches compute their matrix products in bfloat16; the weights stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.helpers import disable_input_dtype_casting

from crow.models.hardware import multiplies_bfloat16
from crow.models.language_model import LanguageModel

PRECISIONS = ("auto", "float32", "bfloat16")
"""`auto` is bfloat16 where the hardware multiplies in it, else what the weights are in (float32 stands for both)."""


@contextmanager
def autocast(lm: LanguageModel, precision: str) -> Iterator[None]:
    """The context in which a model runs at that precision, one of `PRECISIONS`."""
    wanted = autocast_wanted(precision, lm.device, lm.dtype)
    # PEFT casts an adapter's input to the adapter's float32, to be cast back in the product.
    with torch.autocast(lm.device.type, torch.bfloat16, enabled=wanted), disable_input_dtype_casting(lm.model, wanted):
        yield


def autocast_wanted(precision: str, device: torch.device, weights: torch.dtype) -> bool:
    """Whether a model runs under bfloat16 autocast; one in bfloat16 for its adapter, whose weights are in float32.

    Args:
        precision: one of `PRECISIONS`.
        device: of the model.
        weights: dtype of the model; one in float16 stays as it is.
    """
    if weights == torch.float16:
        return False
    return precision == "bfloat16" or (precision == "auto" and multiplies_bfloat16(device))
