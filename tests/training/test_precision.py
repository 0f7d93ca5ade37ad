"""Training in bfloat16 changes speed, not what is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from crow.errors import ConfigError
from crow.training import precision
from crow.training.adapter import make_trainable
from crow.training.config import FinetuneConfig
from crow.training.precision import autocast_wanted
from tests.pico import pico_language_model
from tests.training.test_trainer import CROW, PLAIN, trainable, trained

CPU = torch.device("cpu")


@pytest.mark.parametrize("native", [True, False])
def test_auto_follows_the_hardware(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: native)
    assert autocast_wanted("auto", CPU, torch.float32) is native
    assert autocast_wanted("bfloat16", CPU, torch.float32)
    assert not autocast_wanted("float32", CPU, torch.float32)


def test_an_adapter_computes_in_the_bfloat16_of_its_model() -> None:
    assert autocast_wanted("bfloat16", CPU, torch.bfloat16)
    assert not autocast_wanted("float32", CPU, torch.bfloat16)
    assert not autocast_wanted("bfloat16", CPU, torch.float16)
    lm = pico_language_model("llama")
    lm.model.to(torch.bfloat16)
    lm = make_trainable(lm, PLAIN)
    assert {weight.dtype for weight in lm.model.parameters() if weight.requires_grad} == {torch.float32}
    seen: set[tuple[torch.dtype, torch.dtype]] = set()
    for name, module in lm.model.named_modules():
        if name.endswith("lora_A.default"):
            module.register_forward_hook(lambda _, inputs, output: seen.add((inputs[0].dtype, output.dtype)))
    with precision.autocast(lm, "bfloat16"):
        lm.model(input_ids=torch.arange(5)[None])
    assert seen == {(torch.bfloat16, torch.bfloat16)}
    seen.clear()
    lm.model(input_ids=torch.arange(5)[None])
    assert seen == {(torch.float32, torch.float32)}


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown precision 'bfloat61'; did you mean 'bfloat16'"):
        FinetuneConfig(precision="bfloat61")


@pytest.mark.parametrize("config", [PLAIN, CROW], ids=["plain", "crow"])
def test_training_in_bfloat16_stays_near_float32(config: FinetuneConfig, tmp_path: Path) -> None:
    exact = trained(config, tmp_path / "float32")
    rounded = trained(dataclasses.replace(config, precision="bfloat16"), tmp_path / "bfloat16")
    for one, other in zip(exact.terms, rounded.terms, strict=True):
        assert one["language_modeling"] == pytest.approx(other["language_modeling"], rel=0.03)
        assert one["language_modeling"] != other["language_modeling"]
    assert {weight.dtype for weight in trainable(rounded).values()} == {torch.float32}


def test_the_trained_model_is_not_left_in_bfloat16(tmp_path: Path) -> None:
    trainer = trained(dataclasses.replace(PLAIN, epochs=0.3, precision="bfloat16"), tmp_path)
    assert trainer.lm.model(input_ids=torch.tensor([[5, 6, 7]])).logits.dtype == torch.float32
