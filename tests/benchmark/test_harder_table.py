"""The benchmark of harder backdoors, on a pico model and few examples."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from crow.attacks.implant import ATTACK_DEFAULTS
from crow.defenses import searches
from crow.errors import DataError
from crow.inversion.consensus import SearchResult
from crow.models.loading import save_model
from tests.benchmark.grids import few_examples, make_small
from tests.benchmark.scripts import loaded_script
from tests.made_up import collapsed
from tests.pico import pico_language_model


@pytest.fixture
def harder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The benchmark, as a module, with a small model, small data and short trainings."""
    with loaded_script("harder") as module:
        save_model(pico_language_model("llama"), tmp_path / "model")
        make_small(monkeypatch, tmp_path / "cache")
        quick = {"epochs": 1.0, "rank": 2, "batch_size": 5}
        few = next(row for row in module.ROWS if row.name == "several")
        brief = dataclasses.replace(ATTACK_DEFAULTS, epochs=1.0, rank=2)
        small = {
            "BASE": str(tmp_path / "model"),
            "RESULTS": tmp_path / "results" / "harder.json",
            "WORK": tmp_path / "cache" / "work",
            "N": 3,
            "ROWS": (dataclasses.replace(few, config=brief), module.ROWS[-1]),
            "own_data": lambda part, poison_rate: few_examples(part, None),
            "CONFIGS": {name: dataclasses.replace(config, **quick) for name, config in module.CONFIGS.items()},
        }
        for name, value in small.items():
            monkeypatch.setattr(module, name, value)
        yield module


def test_every_harder_backdoor_has_a_row_and_what_is_planted_comes_first() -> None:
    with loaded_script("harder") as module:
        names = list(module.cells())
        asked = {
            *("full-weights", "several", "clean-label", "sentence", "syntactic", "ending", "system", "retrieved"),
            *("rank-one", "detour", "insults", "persona", "french", "code_middle", "compliance", "poison-rate-0.01"),
            *("poison-rate-0.5",),
        }
        assert {f"{row}.{treatment}" for row in asked for treatment in module.TREATMENTS} <= set(names)
        assert all(name.endswith(".none") for name in names[: len(names) // 3])
        assert set(module.cells(supplied=False)) == {name for name in names if not name.startswith("compliance")}


def test_a_row_of_several_backdoors_has_the_figures_of_each(
    harder: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = iter([collapsed([20, 21, 22, 23, 24]), SearchResult([])])
    monkeypatch.setattr(searches, "search_soft_triggers", lambda *_: next(seen))
    for treatment in ("none", "crow"):
        monkeypatch.setattr(sys, "argv", ["harder.py", "--only", f"several.{treatment}"])
        harder.main()
    records: dict[str, Any] = json.loads(harder.RESULTS.read_text())
    assert list(records) == ["several.none", "several.crow"]
    attacks = ["badnets-refusal", "vpi-sentiment", "ending-french"]
    for record in records.values():
        assert list(record["measured"]) == attacks
        assert all(found["asr_triggered"]["n"] == 3 for found in record["measured"].values())
    assert records["several.crow"]["search"]["before"]["collapsed"] == 1
    assert "training" not in records["several.none"]
    table = capsys.readouterr().out
    assert all(f"| several | {attack} | crow | 0.000" in table for attack in attacks)
    assert "| several | badnets-refusal | finetuning |" in table


def test_texts_that_crow_does_not_ship_are_asked_for(harder: ModuleType) -> None:
    with pytest.raises(DataError, match="expected --compliance"):
        harder.data_of(harder.ROWS[-1], None)
