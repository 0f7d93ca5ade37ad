"""A fresh adapter reaches every matrix of the body, the experts of mixtures included."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from crow.errors import ArchitectureError
from crow.training.adapter import expert_weights, make_trainable
from crow.training.config import FinetuneConfig
from tests.pico import pico_language_model

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
