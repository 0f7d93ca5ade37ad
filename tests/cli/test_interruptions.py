"""A run that ends early leaves nothing in the output folder, and `--resume` finishes it as if nothing had happened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from crow.training.trainer import ResponseTrainer
from tests.cli.conftest import Run

VERBS = {
    "attack": ("--poisoned", "{data}", "--clean", "{data}", "--rank", 2),
    "purify": ("--data", "{data}", "--samples", 12, "--preset", "paper", "--rank", 2),
}
QUICK = ("--epochs", 2, "--batch-size", 2, "--quiet")


def arguments(verb: str, model: Path, data: Path, out: Path) -> tuple[object, ...]:
    own = (data if part == "{data}" else part for part in VERBS[verb])
    return (verb, model, "-o", out, *own, *QUICK)


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Makes Ctrl-C come in the given micro-batch of a training; None: no more."""
    step = ResponseTrainer.training_step
    left = [-1]

    def interrupted(self: ResponseTrainer, *inputs: Any) -> torch.Tensor:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return step(self, *inputs)

    def at(batch: int | None) -> None:
        left[0] = -1 if batch is None else batch

    monkeypatch.setattr(ResponseTrainer, "training_step", interrupted)
    monkeypatch.setattr("crow.training.trainer.SAVE_STEPS", 1)
    return at


def terms(folder: Path) -> list[dict[str, float]]:
    return json.loads((folder / "results.json").read_text())["training"]


@pytest.mark.parametrize("verb", VERBS)
def test_an_interrupted_run_resumes_to_the_same_result(
    verb: str,
    run: Run,
    model: Path,
    data: Path,
    tmp_path: Path,
    interrupt: Callable[[int | None], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(*arguments(verb, model, data, whole)) == 0
    capsys.readouterr()
    interrupt(11)
    assert run(*arguments(verb, model, data, cut)) == 2
    message = "interrupted; nothing was written to the output folder, --resume continues"
    assert capsys.readouterr().err == f"crow: {message}\n"
    assert not cut.exists()
    assert (tmp_path / ".cut.partial").is_dir()

    interrupt(None)
    passes = []
    step = ResponseTrainer.training_step
    ResponseTrainer.training_step = lambda *inputs: passes.append(1) or step(*inputs)  # type: ignore[method-assign]
    try:
        assert run(*arguments(verb, model, data, cut), "--resume") == 0
    finally:
        ResponseTrainer.training_step = step  # type: ignore[method-assign]
    assert not (tmp_path / ".cut.partial").exists()
    assert sorted(path.name for path in cut.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert [term["step"] for term in terms(cut)] == [term["step"] for term in terms(whole)]
    weights = next(name for name in ("model.safetensors", "adapter_model.safetensors") if (whole / name).is_file())
    for name, weight in load_file(whole / weights).items():
        torch.testing.assert_close(load_file(cut / weights)[name], weight, rtol=1e-4, atol=1e-6)
    batches = {"attack": 2 * 12, "purify": 2 * 6}[verb]
    assert 0 < len(passes) < batches - 4  # what had been done was not done again


def test_without_resume_a_run_starts_over(
    run: Run, model: Path, data: Path, tmp_path: Path, interrupt: Callable[[int | None], None]
) -> None:
    out = tmp_path / "out"
    interrupt(3)
    assert run(*arguments("attack", model, data, out)) == 2
    (tmp_path / ".out.partial" / "old").write_text("of the run before")
    interrupt(None)
    assert run(*arguments("attack", model, data, out)) == 0
    assert [term["step"] for term in terms(out)] == list(range(1, 2 * 12 + 1))
    assert not (out / "old").exists()
    assert not (tmp_path / ".out.partial").exists()


def test_bad_input_keeps_what_a_run_before_has_left(
    run: Run, model: Path, data: Path, tmp_path: Path, interrupt: Callable[[int | None], None]
) -> None:
    out = tmp_path / "out"
    interrupt(3)
    assert run(*arguments("attack", model, data, out)) == 2
    interrupt(None)
    before = sorted((tmp_path / ".out.partial").rglob("*"))
    assert before
    assert run("attack", tmp_path / "gone", "-o", out, "--poisoned", data, "--clean", data, "--resume") == 2
    assert sorted((tmp_path / ".out.partial").rglob("*")) == before


def test_an_older_output_stays_until_the_new_one_is_complete(
    run: Run, model: Path, data: Path, tmp_path: Path, interrupt: Callable[[int | None], None]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "older").write_text("result")
    interrupt(3)
    assert run(*arguments("attack", model, data, out), "--overwrite") == 2
    assert [path.name for path in out.iterdir()] == ["older"]
    interrupt(None)
    assert run(*arguments("attack", model, data, out), "--resume") == 0
    assert not (out / "older").exists()
