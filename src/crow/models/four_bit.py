"""Frozen weights in 4 bits (NF4; Dettmers et al., QLoRA, arXiv 2305.14314), a quarter of what bfloat16 takes.

bitsandbytes does it, the extra `crow-llm[quantization]`; on GPUs and on the CPU.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from crow.errors import ConfigError
from crow.models.architecture import unwrap
from crow.models.hardware import multiplies_bfloat16

BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a scale, and scales that share one (double quantization)."""


def four_bit_options(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` wants to load the layers' weights in 4 bits.

    Args:
        dtype: of all other weights, and of the products where the hardware does not multiply in bfloat16.
        device: where the weights go as they are read.

    Raises:
        ConfigError: if bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise ConfigError("expected bitsandbytes for weights in 4 bits; pip install 'crow-llm[quantization]'")
    products = torch.bfloat16 if multiplies_bfloat16(device) else dtype
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=products,
    )
    return {"quantization_config": quantization, "device_map": {"": device}}


def keep_differentiable(model: nn.Module) -> None:
    """Have 4-bit weights stay in the form that gradients can pass.

    On CPUs with AVX-512 BF16, bitsandbytes repacks a layer's weights when it first runs outside of training, for a
    kernel that has no gradients and takes widths that are multiples of `BLOCK` only. A search runs before training.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def is_quantized(model: nn.Module) -> bool:
    """Whether weights are kept in fewer bits than they are computed with."""
    return bool(getattr(unwrap(model), "is_quantized", False))


def four_bit_sizes(model: PreTrainedModel) -> dict[Tensor, int]:
    """Of the weights that would be kept in 4 bits: how many bytes each would take then, its scales included."""
    head = model.get_output_embeddings()
    matrices = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    return {m.weight: round(m.weight.numel() * (1 / 2 + (1 + 4 / NESTED_BLOCK) / BLOCK)) for m in matrices}
