"""Putting a fresh LoRA adapter on a model, and choosing what is trained."""

from __future__ import annotations

import dataclasses
import re
import warnings

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from crow.errors import ArchitectureError, ConfigError
from crow.models.architecture import find_layers, model_type
from crow.models.language_model import LanguageModel
from crow.models.processes import several
from crow.training.config import FinetuneConfig


def make_trainable(lm: LanguageModel, config: FinetuneConfig) -> LanguageModel:
    """`lm` ready for training: a fresh adapter on all linear layers and experts, or all weights; or its own adapter.

    Args:
        lm: the model.
        config: its `method`, `rank`, `dropout` and `trained_from` are used.

    Raises:
        ArchitectureError: if the model has no linear layers to adapt.
        ConfigError: if its adapter has nothing in the layers that are trained, or on another GPU than the first that
            there is, which the trainer would move it to.
    """
    if not several() and lm.device.type == "cuda" and lm.device.index:
        raise ConfigError(f"expected --device cuda, got {lm.device}; choose the GPU by CUDA_VISIBLE_DEVICES")
    layers = find_layers(lm.model)
    untouched = layers[: round(config.trained_from * len(layers))]
    if lm.is_adapter or config.method == "full":
        if not lm.is_adapter:
            lm.model.requires_grad_(True)
        untouched.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in lm.model.parameters()):
            raise ConfigError(
                f"expected an adapter with weights above the lowest {len(untouched)} layers, which are not trained; "
                "drop --continue-adapter"
            )
        return lm
    assert isinstance(lm.model, PreTrainedModel)
    lm.model.requires_grad_(False)
    left_out = [name for name, module in lm.model.named_modules() if any(module is layer for layer in untouched)]
    torch.manual_seed(config.seed)  # the adapter's random half
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank,
        lora_dropout=config.dropout,
        target_modules="all-linear",
        exclude_modules=rf"({'|'.join(map(re.escape, left_out))})\..*" if left_out else None,
        target_parameters=expert_weights(lm.model) or None,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # A rank that PEFT sets for experts it then cannot find by that name.
            warnings.filterwarnings("ignore", message=r"The following \w+_pattern keys", category=RuntimeWarning)
            # PEFT asks transformers by an old name.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            model = get_peft_model(lm.model, lora)
    except ValueError as error:
        raise ArchitectureError(f"cannot put an adapter on model type {model_type(lm.model)!r}: {error}") from None
    untouched.requires_grad_(False)  # PEFT gives a mixture's experts an adapter in all layers
    return dataclasses.replace(lm, model=model)


def expert_weights(model: nn.Module) -> list[str]:
    """Names of the weights (experts, out, in) in which a mixture keeps its experts: no linear layers to PEFT."""
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if not type(module).__module__.startswith("torch.nn")  # a convolution's weight has three dimensions too
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    ]
