"""`crow purify` as several processes: one output, written once, with the weights that one would have trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crow.errors import ConfigError
from crow.models.loading import load_model
from crow.training.presets import get_preset
from crow.workflows.purify import shared_out

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("--preset", "default", "--samples", "12", "--epochs", "1", "--batch-size", "4", "--rank", "4", "--json")


def launch(way: str) -> tuple[str, ...]:
    """The start of a command for Python: two processes as the shipped configuration says, of this module."""
    file = ROOT / "examples" / "accelerate" / f"{way}.yaml"
    return ("-m", "accelerate.commands.launch", "--config_file", str(file), "--num_processes", "2", "-m")


def crow(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Python with these arguments."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), *sys.path]),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


NO_DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is no dependency")


@pytest.mark.parametrize(
    ("way", "answers", "rounds"),
    [
        ("ddp", "20,20", 2),
        # The second answer is none of the suspect's, which is asked for it: its weights have been spread since.
        ("fsdp", "20,30", 1),
        pytest.param("zero3", "20,30", 1, marks=NO_DEEPSPEED),
    ],
)
def test_two_processes_write_what_one_would(
    way: str, answers: str, rounds: int, model: Path, data: Path, tmp_path: Path
) -> None:
    verb = ("purify", model, "--data", data, *SETTINGS)
    alone = crow("-m", "tests.cli.purify_process", answers, *verb, "-o", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    both = crow(*launch(way), "tests.cli.purify_process", answers, *verb, "-o", tmp_path / "both")
    assert both.returncode == 0, both.stderr
    expected = json.loads(alone.stdout)
    results = json.loads(both.stdout[both.stdout.index("{") :])  # DeepSpeed says what it has compiled
    assert results == json.loads((tmp_path / "both" / "results.json").read_text())
    assert results["rounds"] == expected["rounds"] == rounds
    assert results["search"]["after"]["artefacts"] == expected["search"]["after"]["artefacts"]
    assert bool(results["search"]["after"]["artefacts"]) == (way != "ddp")
    assert len(results["training"]) == len(expected["training"])
    for one, other in zip(expected["training"], results["training"], strict=True):
        for name in ("language_modeling", "self_distillation"):
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6), name
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("both", "alone"))
    assert ours.keys() == theirs.keys()
    before = load_model(str(model)).model.state_dict()
    changed = [name for name, weight in theirs.items() if not torch.allclose(weight, before[name])]
    assert changed
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=1e-5)
    assert not list(tmp_path.glob(".*"))


def test_accelerate_launches_the_command_itself(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    verb = ("purify", model, "--data", data, "--preset", "paper", "--samples", "12", "--epochs", "1", "-o", out)
    done = crow(*launch("ddp"), "crow", *verb)
    assert done.returncode == 0, done.stderr
    assert load_model(str(out)).provenance["weights"]
    again = crow(*launch("ddp"), "crow", *verb)
    assert again.returncode != 0
    assert "is not empty; choose another" in again.stderr


def test_other_verbs_say_that_they_want_one_process(model: Path, tmp_path: Path) -> None:
    done = crow(*launch("ddp"), "crow", "analyze", model, "-o", tmp_path / "out")
    assert done.returncode != 0
    assert "expected one process, got several" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("batch", "accumulation", "processes", "expected"),
    [(5, 1, 1, (5, 1)), (4, 1, 2, (2, 1)), (2, 4, 2, (2, 2)), (2, 4, 8, (1, 1)), (3, 2, 6, (1, 1)), (6, 5, 3, (2, 5))],
)
def test_a_step_is_shared_out_evenly(batch: int, accumulation: int, processes: int, expected: tuple[int, int]) -> None:
    config = get_preset("paper").changed(batch_size=batch, accumulation=accumulation)
    own = shared_out(config, processes)
    assert (own.batch_size, own.accumulation) == expected


def test_a_step_that_cannot_be_shared_out_is_named() -> None:
    with pytest.raises(ConfigError, match=r"5 examples of a step .* a multiple of 2 processes"):
        shared_out(get_preset("default"), 2)
