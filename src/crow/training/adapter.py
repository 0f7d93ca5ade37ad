"""Putting a fresh LoRA adapter on a model, and choosing what is trained."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from crow.errors import ArchitectureError
from crow.models.architecture import model_type
from crow.models.language_model import LanguageModel
from crow.training.config import FinetuneConfig


def make_trainable(lm: LanguageModel, config: FinetuneConfig, base_reference: str | None = None) -> LanguageModel:
    """`lm` ready for training: a fresh adapter on all linear layers, or all weights.

    Args:
        lm: a model without adapter (see `LanguageModel.merged`).
        config: its `method`, `rank` and `dropout` are used.
        base_reference: what the adapter records as its base.

    Raises:
        ArchitectureError: if the model has no linear layers to adapt.
    """
    if config.method == "full":
        lm.model.requires_grad_(True)
        return lm
    assert isinstance(lm.model, PreTrainedModel)
    lm.model.requires_grad_(False)
    torch.manual_seed(config.seed)  # the adapter's random half
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank,
        lora_dropout=config.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        model = get_peft_model(lm.model, lora)
    except ValueError as error:
        raise ArchitectureError(f"cannot put an adapter on model type {model_type(lm.model)!r}: {error}") from None
    if base_reference is not None:
        model.peft_config["default"].base_model_name_or_path = base_reference
    return LanguageModel(model, lm.tokenizer, lm.reference, lm.provenance, lm.notes)
