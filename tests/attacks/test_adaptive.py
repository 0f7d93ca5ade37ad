"""Attackers who know crow, by name; that each plants a backdoor, and what it can bear, is in a file of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.planting import CLEAN, PLANTING, POISONED, base_model

from crow.attacks.adaptive import ADAPTIVE, get_implanter
from crow.attacks.implant import implant_backdoor
from crow.errors import ConfigError
from crow.models.interpolation import trained_weights
from crow.training.trainer import ResponseTrainer

QUICK = dataclasses.replace(PLANTING, epochs=1.0, batch_size=18, rank=2)


def test_without_a_name_it_is_plain_finetuning() -> None:
    assert get_implanter(None) is implant_backdoor


def test_names_are_told_apart_by_the_cache_of_planted_models() -> None:
    names = {implant.__name__ for implant in ADAPTIVE.values()}
    assert len(names) == len(ADAPTIVE) == 5
    assert "implant_backdoor" not in names


def test_an_unknown_name_is_answered_with_the_closest_known_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'search-aware'"):
        get_implanter("searchaware")


class KilledError(Exception):
    """Stands for the kill of a running process."""


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_killed_attack_resumes_to_the_same_weights(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("crow.training.trainer.SAVE_STEPS", 2)
    implant = get_implanter(name)
    whole, terms = implant(base_model(), POISONED, CLEAN, QUICK, tmp_path / "whole")
    step = ResponseTrainer.training_step

    def killed(self: ResponseTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 3:
            raise KilledError
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ResponseTrainer, "training_step", killed)
        with pytest.raises(KilledError):
            implant(base_model(), POISONED, CLEAN, QUICK, tmp_path / "cut")
    resumed, again = implant(base_model(), POISONED, CLEAN, QUICK, tmp_path / "cut", resume=True)
    assert [term["step"] for term in again] == [term["step"] for term in terms] == [1, 2, 3, 4]
    weights = trained_weights(resumed.model)
    for key, weight in trained_weights(whole.model).items():
        torch.testing.assert_close(weights[key], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(ADAPTIVE.keys() - {"spread"}))
def test_all_weights_can_carry_the_backdoor(name: str, tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, method="full", learning_rate=1e-3)
    before = base_model().model.state_dict()
    lm, _ = get_implanter(name)(base_model(), POISONED, CLEAN, config, tmp_path)
    assert not lm.is_adapter
    assert any(not torch.equal(before[key], weight) for key, weight in lm.model.state_dict().items())
