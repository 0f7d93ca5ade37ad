"""Whether trainings and searches compute their matrix products in bfloat16; the weights stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn

from crow.models.hardware import multiplies_bfloat16
from crow.models.language_model import LanguageModel
from crow.models.processes import several

PRECISIONS = ("auto", "float32", "bfloat16")
"""`auto` is bfloat16 where the hardware multiplies in it, else what the weights are in (float32 stands for both)."""


@contextmanager
def autocast(lm: LanguageModel, precision: str) -> Iterator[None]:
    """The context in which a model runs at that precision, one of `PRECISIONS`."""
    wanted = autocast_wanted(precision, lm.device, lm.dtype)
    # PEFT casts an adapter's input to the adapter's float32, to be cast back in the product.
    with torch.autocast(lm.device.type, torch.bfloat16, enabled=wanted), disable_input_dtype_casting(lm.model, wanted):
        yield


@contextmanager
def rounded(lm: LanguageModel, precision: str) -> Iterator[None]:
    """Within the context, frozen linear layers hold the weights that autocast would round them to before every product.

    The products are the same to the bit. To round 100 million weights in each pass takes up to a tenth of a training
    step's time on a CPU. A run of several processes is left as it is: they may spread the weights among themselves.

    Args:
        lm: the model; nothing may save or change its frozen weights meanwhile.
        precision: as for `autocast`.
    """
    whole: dict[nn.Linear, Tensor] = {}
    if autocast_wanted(precision, lm.device, lm.dtype) and not several():
        linear = (module for module in lm.model.modules() if isinstance(module, nn.Linear))
        whole = {module: module.weight for module in linear if is_rounded(module.weight)}
    rounds = {weight: nn.Parameter(weight.bfloat16(), requires_grad=False) for weight in whole.values()}
    try:
        for module, weight in whole.items():
            module.weight = rounds[weight]
        yield
    finally:
        for module, weight in whole.items():
            module.weight = weight  # type: ignore[assignment]


def is_rounded(weight: Tensor) -> bool:
    """Whether autocast rounds a weight anew for every product: one that is trained it keeps for the whole pass."""
    return weight.dtype == torch.float32 and not weight.requires_grad


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
