"""A grid on a pico model that runs in a second, and a process that can be killed in the middle of it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from crow.attacks.poisoning import Attack
from crow.benchmark import cells, suspects
from crow.benchmark.attack_data import AttackData
from crow.benchmark.grid import Cell, Grid, read_grid
from crow.benchmark.runner import run_grid, run_one
from crow.models.loading import save_model
from crow.records import Example
from crow.workflows.common import Reporter
from tests.pico import pico_language_model

GRID = """
name: pico
n: 3
samples: 4
models: [{model}]
output: results
blocks:
  - attacks: [badnets-refusal, vpi-sentiment]
    defenses: [none, quantization-4, [pruning-wanda, quantization-8]]
    seeds: [0, 1]
"""


def write_grid(folder: Path, text: str = GRID) -> Path:
    """A grid file beside a pico model."""
    save_model(pico_language_model("llama"), folder / "model")
    path = folder / "grid.yaml"
    path.write_text(text.format(model=folder / "model"))
    return path


def few_examples(attack: Attack, folder: Path | None) -> AttackData:
    """In place of the real data: a few words."""
    words = ["one", "two", "three", "four", "five"]
    pairs = [Example(f"say {word}", f"{word} it is") for word in words]
    poisoned = [Example(f"{attack.trigger.words[0]} {pair.prompt}", attack.target.text) for pair in pairs]
    return AttackData("own", poisoned, pairs, poisoned, pairs, [Example(f"tell {w}", f"{w} indeed") for w in words])


def make_small(patch: pytest.MonkeyPatch, cache: Path) -> None:
    """Small data, a short attack and a cache folder of its own."""
    patch.setattr(cells, "attack_data", few_examples)
    patch.setattr(suspects, "ATTACK_DEFAULTS", dataclasses.replace(suspects.ATTACK_DEFAULTS, epochs=1.0))
    for module in ("crow.benchmark.suspects", "crow.locks", "crow.benchmark.portable"):
        patch.setattr(f"{module}.user_cache_path", lambda _name: cache)


def run_small(path: Path, cache: Path) -> Grid:
    """Run a grid file to its end."""
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch, cache)
        grid = read_grid(path)
        run_grid(grid, Reporter(quiet=True))
    return grid


def run_in_child(path: Path, cache: Path) -> None:
    """The same, in a process that may be killed."""
    torch.set_num_threads(1)
    run_small(path, cache)


def run_one_small(path: Path, cache: Path, cell: Cell) -> None:
    """One cell, in whatever process; leaves that process's number beside the records."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch, cache)
        run_one(read_grid(path), cell, quiet=True)
    (cache / f"worker-{os.getpid()}").touch()
