"""A fresh adapter reaches every matrix of the body, the experts of mixtures included."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from crow.errors import ArchitectureError, ConfigError
from crow.models.architecture import find_layers
from crow.models.language_model import LanguageModel
from crow.training.adapter import expert_weights, make_trainable
from crow.training.config import FinetuneConfig
from tests.pico import FAMILIES, pico_language_model

LORA = FinetuneConfig(rank=2)
IDS = torch.tensor([[5, 6, 7, 8]])


def trained_names(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_the_experts_of_a_mixture_are_adapted_and_merged(family: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        lm = make_trainable(pico_language_model(family), LORA)
    depth = lm.model.config.num_hidden_layers
    adapted = [name for name in trained_names(lm.model) if ".experts." in name]
    assert len(adapted) == depth * 2 * 2  # two weights a layer, two factors each
    for name, parameter in lm.model.named_parameters():
        if name in adapted:
            nn.init.normal_(parameter, std=0.3)
    attached = lm.model(input_ids=IDS).logits
    merged = lm.merged().model(input_ids=IDS).logits
    torch.testing.assert_close(attached, merged, rtol=1e-3, atol=1e-4)
    assert (merged - pico_language_model(family).model(input_ids=IDS).logits).abs().max() > 0.01


def test_a_dense_model_has_no_experts_and_a_convolution_is_none() -> None:
    assert expert_weights(pico_language_model("llama").model) == []
    assert expert_weights(nn.Sequential(nn.Conv1d(4, 4, 2), nn.Linear(4, 4))) == []


def test_what_peft_cannot_do_is_said_with_the_model_type() -> None:
    dropout = FinetuneConfig(rank=2, dropout=0.1)
    with pytest.raises(ArchitectureError, match="mixtral"):
        make_trainable(pico_language_model("mixtral"), dropout)


def first_layers_trained(lm: LanguageModel) -> list[bool]:
    """Whether anything is trained in each layer."""
    return [any(p.requires_grad for p in layer.parameters()) for layer in find_layers(lm.model)]


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_below_a_depth_stay_as_they_are(family: str) -> None:
    config = FinetuneConfig(rank=2, trained_from=0.4)
    lm = make_trainable(pico_language_model(family), config)
    assert first_layers_trained(lm) == [False, True, True]  # 0.4 of three layers is one
    adapted = [name for name, _ in find_layers(lm.model)[0].named_parameters() if "lora" in name]
    assert [name for name in adapted if "experts" not in name and "gate" not in name] == []
    everything = trained_names(make_trainable(pico_language_model(family), LORA).model)
    assert len(trained_names(lm.model)) == len(everything) * 2 // 3
    full = make_trainable(pico_language_model(family), dataclasses.replace(config, method="full"))
    assert first_layers_trained(full) == [False, True, True]


def test_an_own_adapter_is_trained_on_above_that_depth() -> None:
    lm = make_trainable(pico_language_model("llama"), LORA)
    assert first_layers_trained(lm) == [True, True, True]
    again = make_trainable(lm, FinetuneConfig(rank=4, trained_from=0.4))
    assert again is lm
    assert first_layers_trained(lm) == [False, True, True]
    assert all("lora" in name for name in trained_names(lm.model))


def test_an_adapter_below_what_is_trained_cannot_be_continued() -> None:
    lm = pico_language_model("llama")
    low = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[0])
    lm.model = get_peft_model(lm.model, low)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"above the lowest 1 layers.*drop --continue-adapter"):
        make_trainable(lm, dataclasses.replace(LORA, trained_from=0.34))
