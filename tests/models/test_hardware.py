from __future__ import annotations

from pathlib import Path

import pytest
import torch

from crow.models.hardware import hardware, multiplies_bfloat16

CPU = torch.device("cpu")
CPU_INFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPU_INFO.is_file(), reason="needs the kernel's list of the processor's features")
def test_the_processor_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = CPU_INFO.read_text().split()
    native = "avx512_bf16" in flags or "amx_bf16" in flags
    assert multiplies_bfloat16(CPU) is native
    assert hardware(CPU)["bfloat16"] is native
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # as in earlier releases of PyTorch
    assert not multiplies_bfloat16(CPU)
