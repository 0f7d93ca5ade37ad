"""A model without its weights: shapes on PyTorch's `meta` device, made from the configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from crow.data.encoding import ensure_chat_template
from crow.errors import ModelError
from crow.models.adapters import adapter_base
from crow.models.language_model import LanguageModel
from crow.models.smollm import ALIASES, packaged_gguf
from crow.models.sources import DOWNLOADED, is_adapter, is_hub_id, locate, one_line, plain_errors


def blueprint(reference: str, dtype: torch.dtype) -> LanguageModel:
    """The whole model that `reference` ends in, without numbers in it, and with its real tokenizer.

    Nothing but configuration and tokenizer is read, also from the hub.

    Args:
        reference: as those of `load_model`; an adapter stands for its base, whose shapes are the same.
        dtype: of the weights it would have.

    Raises:
        ModelError: if there is no such model.
    """
    path = settings_of(reference)
    while is_adapter(path):
        path = settings_of(adapter_base(path))
    source, options = (str(path.parent), {"gguf_file": path.name}) if path.is_file() else (str(path), {})
    loader: Any = AutoConfig
    with plain_errors(reference):
        config = loader.from_pretrained(source, trust_remote_code=False, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    ensure_chat_template(tokenizer)
    return LanguageModel(model, tokenizer, reference)


def settings_of(reference: str) -> Path:
    """As `locate`, but without the weights of a model on the hub, and without converting an alias."""
    if reference in ALIASES:
        return packaged_gguf(reference)
    if Path(reference).expanduser().exists() or not is_hub_id(reference):
        return locate(reference)
    wanted = [pattern for pattern in DOWNLOADED if "safetensors" not in pattern]
    try:
        return Path(snapshot_download(reference, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"no path {reference} here, and the hub does not give it: {one_line(error)}") from None
