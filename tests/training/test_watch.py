"""Progress of a training adds up to its number of steps, interrupted or not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from crow.training.adapter import make_trainable
from crow.training.config import FinetuneConfig
from crow.training.trainer import ResponseTrainer
from crow.training.watch import silent, watched
from tests.pico import pico_language_model
from tests.training.test_trainer import PLAIN, encoded


class Display:
    """Remembers what it was asked to show."""

    def __init__(self) -> None:
        self.title, self.total, self.done = "", 0, 0

    @contextmanager
    def __call__(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        self.title, self.total, self.done = title, total or 0, 0
        yield self.advance

    def advance(self, steps: int) -> None:
        self.done += steps


def train(config: FinetuneConfig, folder: Path, display: Display, resume: bool = False) -> None:
    lm = make_trainable(pico_language_model("llama"), config)
    items = encoded(lm)
    with watched(display, "training", len(items), config) as callbacks:
        ResponseTrainer(lm, items, config, folder, callbacks).run(resume)


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "epochs", "steps"), [(4, 1, 2.0, 6), (5, 1, 1.0, 3), (2, 2, 1.5, 5), (4, 2, 1.0, 2)]
)
def test_the_total_is_what_the_trainer_takes(
    batch_size: int, accumulation: int, epochs: float, steps: int, tmp_path: Path
) -> None:
    display = Display()
    config = dataclasses.replace(PLAIN, batch_size=batch_size, accumulation=accumulation, epochs=epochs)
    train(config, tmp_path, display)
    assert (display.title, display.total, display.done) == ("training", steps, steps)


def test_the_steps_of_an_interrupted_run_count_as_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("crow.training.trainer.SAVE_STEPS", 4)
    display = Display()
    train(PLAIN, tmp_path, display)
    (tmp_path / "checkpoint-6").rename(tmp_path / "later")
    train(PLAIN, tmp_path, display, resume=True)
    assert display.done == display.total == 6


def test_without_a_display_there_is_no_callback() -> None:
    with watched(silent, "training", 12, PLAIN) as callbacks:
        assert callbacks == []
