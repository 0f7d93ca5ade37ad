"""A model without its weights: shapes on PyTorch's `meta` device, made from the configuration alone."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from crow.data.encoding import ensure_chat_template
from crow.models.adapters import adapter_chain
from crow.models.architecture import check_cache
from crow.models.language_model import LanguageModel
from crow.models.sources import plain_errors


def blueprint(reference: str, dtype: torch.dtype) -> LanguageModel:
    """The whole model that `reference` ends in, without numbers in it, and with its real tokenizer.

    Nothing but configuration and tokenizer is read, also from the hub.

    Args:
        reference: as those of `load_model`; an adapter stands for its base, whose shapes are the same.
        dtype: of the weights it would have.

    Raises:
        ModelError: if there is no such model.
        AdapterError: if an adapter names no base, or itself.
        ArchitectureError: if crow cannot work with this kind of model.
    """
    _, path, _ = adapter_chain(reference, weights=False)
    source, options = (str(path.parent), {"gguf_file": path.name}) if path.is_file() else (str(path), {})
    loader: Any = AutoConfig
    with plain_errors(reference):
        config = loader.from_pretrained(source, trust_remote_code=False, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    check_cache(model)
    ensure_chat_template(tokenizer)
    return LanguageModel(model, tokenizer, reference)
