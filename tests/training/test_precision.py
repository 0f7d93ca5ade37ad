"""Training in bfloat16 changes speed, not what is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from crow.errors import ConfigError
from crow.models.language_model import LanguageModel
from crow.training import precision
from crow.training.adapter import make_trainable
from crow.training.config import FinetuneConfig
from crow.training.precision import autocast_wanted, rounded
from tests.pico import FAMILIES, pico_language_model
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


def frozen_weights(lm: LanguageModel) -> list[torch.nn.Parameter]:
    return [weight for weight in lm.model.parameters() if not weight.requires_grad]


def are_same(some: list[torch.nn.Parameter], others: list[torch.nn.Parameter]) -> bool:
    return all(one is other for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_rounded_weights_give_the_products_of_autocast_to_the_bit(family: str) -> None:
    lm = make_trainable(pico_language_model(family), PLAIN)
    for weight in lm.model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    weights = frozen_weights(lm)

    def logits_and_gradients() -> list[torch.Tensor]:
        with precision.autocast(lm, "bfloat16"):
            logits = lm.model(input_ids=torch.arange(12).reshape(2, 6)).logits
        trained = [weight for weight in lm.model.parameters() if weight.requires_grad]
        return [logits, *torch.autograd.grad(logits.float().square().sum(), trained)]

    expected = logits_and_gradients()
    with rounded(lm, "bfloat16"):
        held = {weight.dtype for weight in frozen_weights(lm)}
        found = logits_and_gradients()
    assert held == {torch.float32, torch.bfloat16}
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert are_same(frozen_weights(lm), weights)  # what is tied stays so


def test_weights_are_put_back_after_an_error_and_not_touched_in_float32() -> None:
    lm = make_trainable(pico_language_model("llama"), PLAIN)
    weights = frozen_weights(lm)
    with pytest.raises(KeyboardInterrupt), rounded(lm, "bfloat16"):
        raise KeyboardInterrupt
    assert are_same(frozen_weights(lm), weights)
    with rounded(lm, "float32"):
        assert are_same(frozen_weights(lm), weights)


@pytest.mark.parametrize("config", [PLAIN, CROW], ids=["plain", "crow"])
def test_a_training_is_the_same_to_the_bit_on_rounded_weights(
    config: FinetuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, precision="bfloat16")
    found = trained(config, tmp_path / "rounded")
    monkeypatch.setattr(precision, "several", lambda: True)  # then every product rounds
    expected = trained(config, tmp_path / "anew")
    for name, weight in trainable(expected).items():
        assert torch.equal(trainable(found)[name], weight), name
