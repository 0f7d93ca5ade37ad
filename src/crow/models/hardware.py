"""What the machine can do, as far as it matters for time and rounding."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; emulated, it would be slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        known = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    return False


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine as far as it matters for time and rounding."""
    facts: dict[str, Any] = {"device": str(device), "machine": platform.machine(), "cpus": os.cpu_count()}
    facts["threads"] = torch.get_num_threads()
    facts["bfloat16"] = multiplies_bfloat16(device)
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts
