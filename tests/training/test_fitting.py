"""As many examples at a time as fit; what is trained does not depend on how many."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crow.models.language_model import LanguageModel
from crow.training import fitting
from crow.training.adapter import make_trainable
from crow.training.config import CrowConfig
from crow.training.crow_trainer import CrowTrainer
from crow.training.fitting import fit, halved, widened
from tests.pico import pico_language_model
from tests.training.test_trainer import CROW, encoded, trainable

NARROW = dataclasses.replace(CROW, batch_size=2, accumulation=2, adversary_every=1)


class Counting:
    """An adversary that only counts its turns: a fake."""

    def __init__(self) -> None:
        self.turns = torch.zeros(1)

    def loss(self, turn: int) -> Tensor:
        """Nothing to train."""
        self.turns += 1
        return torch.zeros(())

    def state(self) -> dict[str, Tensor]:
        """The count itself, not a copy."""
        return {"turns": self.turns}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put the count back."""
        self.turns = state["turns"]


def small_memory(rows: int) -> type[CrowTrainer]:
    """A trainer that runs out of memory in its third step where a micro-batch has more than `rows` examples."""

    class SmallMemory(CrowTrainer):
        def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
            if len(inputs["input_ids"]) > rows and self.state.global_step >= 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().compute_loss(model, inputs, *args, **kwargs)

    return SmallMemory


def fitted(kind: type[CrowTrainer], folder: Path, adversary: Counting) -> tuple[CrowTrainer, list[int]]:
    """The trainer that ran, and the micro-batches that were tried."""
    lm: LanguageModel = make_trainable(pico_language_model("llama"), NARROW)
    tried = []

    def make(config: CrowConfig) -> CrowTrainer:
        tried.append(config.batch_size)
        assert config.batch_size * config.accumulation == 4
        return kind(lm, encoded(lm), config, folder, adversary=adversary)

    trainer = fit(lm, NARROW, make, adversary=adversary)
    assert isinstance(trainer, CrowTrainer)
    return trainer, tried


def test_a_gpu_takes_a_step_at_once_and_a_cpu_as_it_was_told() -> None:
    wide = widened(NARROW, torch.device("cuda"))
    assert (wide.batch_size, wide.accumulation) == (4, 1)
    assert widened(NARROW, torch.device("cpu")) is NARROW


def test_one_of_several_gpus_takes_its_part_as_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert widened(NARROW, torch.device("cuda")) is NARROW


@pytest.mark.parametrize(("rows", "half"), [(8, 4), (2, 1), (6, 3), (3, 1)])
def test_halves_make_the_same_steps(rows: int, half: int) -> None:
    config = halved(dataclasses.replace(NARROW, batch_size=rows, accumulation=2))
    assert config.batch_size == half
    assert config.batch_size * config.accumulation == rows * 2


def test_what_does_not_fit_is_trained_from_its_beginning_in_halves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain, once = Counting(), Counting()
    expected, tried = fitted(CrowTrainer, tmp_path / "plain", plain)
    assert tried == [2]
    monkeypatch.setattr(fitting, "alone_on_gpu", lambda device: True)
    again, tried = fitted(small_memory(1), tmp_path / "again", once)
    assert tried == [4, 2, 1]
    assert len(again.terms) == len(expected.terms)
    assert once.turns == plain.turns == len(expected.terms)
    for name, weight in trainable(again).items():
        torch.testing.assert_close(weight, trainable(expected)[name], rtol=0.02, atol=2e-3)


def test_single_examples_that_do_not_fit_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fitting, "alone_on_gpu", lambda device: True)
    with pytest.raises(torch.OutOfMemoryError):
        fitted(small_memory(0), tmp_path, Counting())
