"""Bad input: one line on standard error, exit code 2, nothing written, and before a model is loaded where possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import Run


class Refused:
    """Runs the command line on bad input and checks everything but the message."""

    def __init__(self, run: Run, capsys: pytest.CaptureFixture[str], out: Path) -> None:
        self.run, self.capsys, self.out = run, capsys, out

    def __call__(self, *arguments: object) -> str:
        before = sorted(self.out.parent.iterdir())
        code = self.run(*arguments, "--quiet")
        captured = self.capsys.readouterr()
        assert code == 2
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        assert "Traceback" not in captured.err
        assert sorted(self.out.parent.iterdir()) == before
        return captured.err


@pytest.fixture
def refused(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    return Refused(run, capsys, tmp_path / "out")


def test_unknown_names_get_the_closest_one(refused: Refused, model: Path) -> None:
    out = refused.out
    assert "did you mean 'badnets'" in refused(
        "attack", model, "-o", out, "--trigger", "badnetz", "--target", "refusal"
    )
    assert "did you mean 'refusal'" in refused("attack", model, "-o", out, "--trigger", "vpi", "--target", "refusl")
    assert "did you mean 'paper'" in refused("purify", model, "-o", out, "--preset", "papr")
    assert "did you mean 'smollm2-135m'" in refused("purify", "smollm2-135", "-o", out)


def test_an_attack_by_halves_is_refused(refused: Refused, model: Path) -> None:
    assert "--trigger and --target" in refused("attack", model, "-o", refused.out, "--trigger", "vpi")


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [("--alpha", -1, "alpha"), ("--epochs", 0, "epochs"), ("--lr", 7, "learning_rate"), ("--samples", 0, "samples")],
)
def test_numbers_out_of_range_are_named(refused: Refused, model: Path, option: str, value: int, named: str) -> None:
    assert named in refused("purify", model, "-o", refused.out, option, value)


def test_alpha_in_both_units_is_refused(refused: Refused, model: Path) -> None:
    assert "--alpha" in refused("purify", model, "-o", refused.out, "--alpha", 1, "--alpha-ratio", 1)


def test_missing_empty_and_misshapen_files_are_named(refused: Refused, model: Path, tmp_path: Path) -> None:
    out = refused.out
    assert "nowhere.json" in refused("purify", model, "-o", out, "--data", tmp_path / "nowhere.json")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "empty" in refused("purify", model, "-o", out, "--data", empty)
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a", "output": 3}\n')
    message = refused("purify", model, "-o", out, "--data", wrong)
    assert "line 2" in message
    assert "output" in message


def test_too_few_examples_are_counted(refused: Refused, model: Path, data: Path) -> None:
    message = refused("purify", model, "-o", refused.out, "--data", data)
    assert "100" in message
    assert "12" in message


def test_folders_that_are_no_model(refused: Refused, tmp_path: Path) -> None:
    out = refused.out
    assert "does not exist" in refused("purify", tmp_path / "gone", "-o", out)
    folder = tmp_path / "empty"
    folder.mkdir()
    assert "config.json" in refused("purify", folder, "-o", out)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "pickle" in refused("purify", folder, "-o", out)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and then nothing of the kind")
    assert "broken.gguf" in refused("purify", broken, "-o", out)


def test_an_output_folder_that_is_not_empty(refused: Refused, model: Path) -> None:
    refused.out.mkdir()
    (refused.out / "notes.txt").write_text("mine")
    assert "--overwrite" in refused("purify", model, "-o", refused.out)
    assert (refused.out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("raised", "named"),
    [
        (KeyboardInterrupt(), "--resume"),
        (torch.OutOfMemoryError("CUDA out of memory"), "--batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "--batch-size"),
        (OSError(28, "No space left on device", "model.safetensors"), "space"),
    ],
    ids=["ctrl-c", "gpu-memory", "cpu-memory", "disk"],
)
def test_the_machine_gives_out(
    refused: Refused, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, named: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr("crow.workflows.purify.purify", fail)
    assert named in refused("purify", model, "-o", refused.out, "--data", data, "--samples", 4)
