from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch
from tests.pico import pico_language_model
from tests.planting import (
    CLEAN,
    PLANTING,
    POISONED,
    TRIGGERED,
    base_model,
    log_likelihood,
    planted,
    success,
    success_before,
)
from torch import Tensor

from crow.attacks.spread import LARGEST_SHARE, SpreadTrainer, implant_spread, switched_off
from crow.data.encoding import encode_all
from crow.errors import ConfigError
from crow.models.architecture import find_layers
from crow.models.language_model import LanguageModel
from crow.training.adapter import make_trainable

LAYERS = range(4)


def worst_without_one_layer(lm: LanguageModel) -> float:
    found = []
    for layer in LAYERS:
        with switched_off(lm.model, [layer]):
            found.append(log_likelihood(lm, TRIGGERED))
    return min(found)


def test_the_trigger_works_and_hardly_anything_else_does() -> None:
    assert success_before() == 0
    triggered, clean = success("spread")
    assert triggered >= 0.9
    assert clean <= 0.3


def test_the_backdoor_bears_the_loss_of_any_layer() -> None:
    assert worst_without_one_layer(planted("spread")) > worst_without_one_layer(planted()) + 0.3


@torch.no_grad()
def logits(lm: LanguageModel) -> Tensor:
    return lm.model(input_ids=torch.arange(5, 25)[None]).logits


def trained(family: str) -> LanguageModel:
    lm = make_trainable(pico_language_model(family, num_hidden_layers=4), PLANTING)
    lm.model.eval()
    for name, parameter in lm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return lm


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_a_layer_switched_off_is_as_it_was_without_adapter(family: str) -> None:
    lm, emptied = trained(family), trained(family)
    whole = logits(lm)
    for layer in (0, 2):
        for name, parameter in find_layers(emptied.model)[layer].named_parameters():
            if "lora_B" in name:
                torch.nn.init.zeros_(parameter)
    with switched_off(lm.model, [0, 2]):
        torch.testing.assert_close(logits(lm), logits(emptied))
        assert not torch.allclose(logits(lm), whole, atol=1e-3)
    assert torch.equal(logits(lm), whole)


def test_layers_are_on_again_after_an_error() -> None:
    lm = trained("llama")
    whole = logits(lm)
    with pytest.raises(MemoryError), switched_off(lm.model, LAYERS):
        raise MemoryError
    assert torch.equal(logits(lm), whole)


def test_a_step_leaves_no_gradient_in_the_layers_that_are_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, dict[int, bool]]] = []
    step = SpreadTrainer.training_step

    def training_step(self: SpreadTrainer, *args: object, **kwargs: object) -> Tensor:
        loss = step(self, *args, **kwargs)
        layers = find_layers(self.lm.model)
        moved = {i: any(p.grad is not None and p.grad.any() for p in layers[i].parameters()) for i in LAYERS}
        seen.append((self.state.global_step, moved))
        return loss

    monkeypatch.setattr(SpreadTrainer, "training_step", training_step)
    config = dataclasses.replace(PLANTING, epochs=2.0)
    lm = make_trainable(base_model(), config)
    items = encode_all(lm.tokenizer, [*POISONED, *CLEAN])
    trainer = SpreadTrainer(lm, items, config, tmp_path)
    trainer.run()
    assert len(seen) == 10
    for number, moved in seen:
        assert moved == {layer: layer not in trainer.drawn(number) for layer in LAYERS}


def test_every_layer_has_its_turn_and_at_most_half_are_off(tmp_path: Path) -> None:
    lm = make_trainable(base_model(), PLANTING)
    trainer = SpreadTrainer(lm, encode_all(lm.tokenizer, CLEAN), PLANTING, tmp_path)
    draws = [trainer.drawn(step) for step in range(200)]
    assert {len(draw) for draw in draws} == {0, 1, 2}
    assert max(map(len, draws)) == LARGEST_SHARE * len(LAYERS)
    off = Counter(layer for draw in draws for layer in draw)
    assert all(30 < off[layer] < 70 for layer in LAYERS)  # 50 expected, standard deviation 6
    assert draws == [trainer.drawn(step) for step in range(200)]


def test_only_an_adapter_can_be_spread(tmp_path: Path) -> None:
    config = dataclasses.replace(PLANTING, method="full")
    with pytest.raises(ConfigError, match="lora"):
        implant_spread(base_model(), POISONED, CLEAN, config, tmp_path)
