from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from crow.benchmark.grid import Cell, describe, read_grid
from crow.defenses.table import DEFENSES
from crow.errors import ConfigError

SMALL: dict[str, Any] = {
    "name": "small",
    "blocks": [
        {"attacks": ["badnets-refusal", "vpi-code_injection"], "defenses": ["none", ["crow", "quantization-4"]]},
        {
            "attacks": ["badnets-refusal"],
            "defenses": ["finetuning", "crow"],
            "seeds": [0, 1],
            "settings": [{}, {"alpha": 2}],
        },
    ],
}


def written(folder: Path, values: Any) -> Path:
    path = folder / "grid.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def changed(**changes: Any) -> dict[str, Any]:
    return {**SMALL, "blocks": [{**SMALL["blocks"][0], **changes}]}


def test_cells_come_in_the_blocks_order_and_only_once(tmp_path: Path) -> None:
    values = {**SMALL, "blocks": [*SMALL["blocks"], SMALL["blocks"][0]]}
    grid = read_grid(written(tmp_path, values))
    assert [(c.attack, c.defense, c.seed, dict(c.settings)) for c in grid.cells] == [
        ("badnets-refusal", ("none",), 0, {}),
        ("badnets-refusal", ("crow", "quantization-4"), 0, {}),
        ("vpi-code_injection", ("none",), 0, {}),
        ("vpi-code_injection", ("crow", "quantization-4"), 0, {}),
        *[
            ("badnets-refusal", (defense,), seed, settings)
            for settings in ({}, {"alpha": 2})
            for defense in ("finetuning", "crow")
            for seed in (0, 1)
        ],
    ]
    assert (grid.name, grid.n, grid.samples, grid.data) == ("small", 100, 100, None)
    assert grid.output == tmp_path / "grid-results"


def test_what_else_is_measured_is_said_by_block_or_grid(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"task_id": "a", "prompt": "", "entry_point": "f", "test": "def check(f): 0"}')
    blocks = [
        {"attacks": ["badnets-refusal"], "defenses": ["none"]},
        {"attacks": ["vpi-code_injection"], "defenses": ["none"], "code": "own.jsonl", "kept": False},
    ]
    grid = read_grid(
        written(tmp_path, {**SMALL, "n": 9, "kept": True, "blocks": [*blocks, {**blocks[0], "kept": False}]})
    )
    assert [(cell.kept, cell.abilities.code, cell.abilities.n) for cell in grid.cells] == [
        (True, None, 9),
        (False, str(tmp_path / "own.jsonl"), 9),
    ]
    assert "abilities" not in describe(grid.cells[0])


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    grid = read_grid(written(tmp_path, {**changed(), "data": "../public", "output": "../out", "n": 7}))
    assert grid.data is not None
    assert (grid.data.resolve(), grid.output.resolve()) == (tmp_path.parent / "public", tmp_path.parent / "out")
    assert grid.n == 7


def test_every_part_of_a_cell_is_in_its_name() -> None:
    cell = Cell("some/model", "ctba-sentiment", ("crow",), 3, (("alpha", 2.5),), "other/reference")
    others = [
        dataclasses.replace(cell, **change)
        for change in (
            {"model": "some/another"},
            {"attack": "vpi-sentiment"},
            {"defense": ("crow", "quantization-4")},
            {"seed": 4},
            {"settings": ()},
            {"settings": (("alpha", 3.5),)},
            {"reference": None},
        )
    ]
    assert len({other.name for other in others} | {cell.name}) == 8
    assert not set(cell.name) & set("/ :\\")
    assert describe(cell) == {
        "model": "some/model",
        "attack": "ctba",
        "target": "sentiment",
        "defense": "crow",
        "seed": 3,
        "settings": {"alpha": 2.5},
        "reference": "other/reference",
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("- a\n- b\n", "names with values, got list"),
        ("a: [", "cannot be read"),
        ({"name": "x"}, "'blocks'"),
        ({"name": "x", "blocks": []}, "blocks to be a list"),
        ({**SMALL, "bloks": []}, "did you mean 'blocks'"),
        ({**SMALL, "n": 0}, "n to be a whole number from 1 to 2147483647, got 0"),
        ({**SMALL, "samples": "many"}, "samples to be a whole number"),
        ({"name": "x", "blocks": [{"attacks": ["badnets-refusal"]}]}, "block 1: expected 'defenses'"),
        (changed(defenses="crow"), "defenses to be a list"),
        (changed(defenses=["crwo"]), "did you mean 'crow'"),
        (changed(defenses=[[]]), "a stack of defenses"),
        (changed(defenses=[["crow", "quantisation-4"]]), "did you mean 'quantization-4'"),
        (changed(attacks=["bednets-refusal"]), "did you mean 'badnets'"),
        (changed(attacks=["badnets"]), "target"),
        (changed(seeds=[-1]), "from 0 to 2147483647, got -1"),
        (changed(seeds=[True]), "whole number"),
        (changed(settings=["alpha"]), "settings to be names"),
        (changed(settings=[{"alpa": 1}], defenses=["crow"]), "did you mean 'alpha'"),
        (changed(settings=[{"alpha": -1}], defenses=["crow"]), "alpha >= 0"),
        (changed(settings=[{"alpha": "much"}], defenses=["crow"]), "block 1"),
        (changed(settings=[{"samples": 0}], defenses=["crow"]), "samples to be"),
        (changed(settings=[{"alpha": 1}], defenses=["none"]), "settings for one of"),
        (changed(settings=[{"layers": [[5, 6]]}], defenses=["crow"]), "settings to be names"),
        (changed(settings=[{"epsilon": 0.1, 3: 4}], defenses=["crow"]), "'3'"),
        (changed(defenses=[["crow", ["none"]]]), "a defense to be text"),
        (changed(seeds=[2**40]), "whole number"),
        (changed(defenses=["cleangen"], reference=3), "reference to be text"),
        ("[" * 5000, "cannot be read"),
        (changed(defenses=["cleangen"]), "wants a clean model"),
        (changed(models=["a/model", "b/model"]), "twice"),
        (changed(kept="yes"), "kept to be true or false"),
        (changed(code="nowhere.jsonl"), "block 1: cannot read the problems"),
        (changed(judge={"model": "m"}), "'base_url'"),
        (changed(judge={"base_url": "http://h", "model": "m"}), "a judge together"),
        (changed(tasks="hellaswag"), "tasks to be a list"),
        (changed(tasks=["helaswag"]), "did you mean 'hellaswag'"),
    ],
)
def test_what_could_not_run_is_refused_before_anything_runs(values: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_grid(written(tmp_path, values))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        read_grid(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "benchmarks" / "grids").glob("*.yaml")), ids=str)
def test_the_grids_that_ship_are_right(path: Path) -> None:
    grid = read_grid(path)
    assert len(grid.cells) > 10
    if path.stem == "paper-small":
        defenses = {cell.defense for cell in grid.cells}
        assert {(name,) for name in DEFENSES} - defenses == {("pruning-magnitude-2:4",), ("pruning-magnitude-4:8",)}
        assert sum(len(defense) > 1 for defense in defenses) == 2
