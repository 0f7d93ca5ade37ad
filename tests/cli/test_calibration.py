"""`crow calibrate` and what goes with it, on a pico model that really has the canary; its planting is made up."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
from pathlib import Path

import pytest
import torch

from crow.attacks.behavior import TargetBehavior
from crow.attacks.poisoning import Attack
from crow.attacks.triggers import Trigger
from crow.data.code import CodeTask
from crow.data.splits import Split
from crow.defenses import purification
from crow.models.interpolation import put_weights, trained_weights
from crow.models.language_model import LanguageModel
from crow.models.loading import load_model, save_model
from crow.records import Example, SearchRecord
from crow.training.config import CrowConfig
from crow.training.presets import get_preset
from crow.workflows import calibration, clean_data, verification
from crow.workflows.common import Options, Reporter
from tests.backdoor import SEARCH, SENTENCE, TRIGGER, held_out, swaps, trained_pico, training_examples, triggered
from tests.cli.conftest import Run

CANARY = Attack(Trigger("ten", (TRIGGER,), "anywhere"), TargetBehavior("go_away", SENTENCE, SENTENCE), 1.0)
QUICK = {
    "epochs": 4.0,
    "batch_size": 12,
    "learning_rate": 2e-3,
    "precision": "float32",
    "trained_from": 0.0,
    "rounds": 1,
    "samples": 60,
}
planted: list[int] = []


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pico data, one canary, a search for pico models, and a planting that hands over a model trained before."""

    def implant(lm: LanguageModel, *_: object) -> tuple[LanguageModel, list[object]]:
        planted.append(1)
        return dataclasses.replace(trained_pico(poisoned=True), provenance=lm.provenance), []

    def poisoned(clean: list[Example], share: float, seed: int) -> dict[str, list[Example]]:
        return {"ten": [triggered(example, random.Random(seed)) for example in held_out()]}

    planted.clear()
    code = tuple(CodeTask(Example(f"code {n}"), f"f{n}", "") for n in range(4))
    split = Split(tuple(held_out()), tuple(Example(e.prompt) for e in swaps()), code)
    for module in (calibration, clean_data, verification):
        monkeypatch.setattr(module, "bundled_split", lambda _name: split)
    monkeypatch.setattr(calibration, "CANARIES", {"ten": CANARY})
    monkeypatch.setattr(calibration, "canary_examples", poisoned)
    monkeypatch.setattr(calibration, "implant_backdoor", implant)
    monkeypatch.setattr(purification, "SearchConfig", lambda: SEARCH)
    monkeypatch.setattr(verification, "SearchConfig", lambda: SEARCH)
    monkeypatch.setattr(CrowConfig, "changed", lambda self, **_: dataclasses.replace(self, **QUICK))


@pytest.fixture(scope="module")
def suspect(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suspect") / "model"
    save_model(trained_pico(poisoned=True), folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "clean.jsonl"
    lines = [json.dumps({"instruction": e.prompt, "output": e.response}) for e in training_examples()]
    path.write_text("\n".join(lines))
    return path


def test_the_chosen_strength_removed_a_canary_that_worked(run: Run, suspect: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("calibrate", suspect, "-o", out, "--data", data, "--quiet") == 0
    found = json.loads((out / "results.json").read_text())["calibration"]
    assert found["canaries"]["ten"]["value"] > 0.9
    by_strength = {trial["strength"]: trial for trial in found["trials"]}
    assert by_strength[1.0]["canaries"]["ten"]["value"] == 0
    assert found["strength"] <= 1.0
    assert by_strength[found["strength"]]["canaries"]["ten"]["value"] == 0
    # Less of the way leaves no less of the canary.
    left = [by_strength[s]["canaries"]["ten"]["value"] for s in sorted(by_strength)]
    assert left == sorted(left, reverse=True)
    page = (out / "report.html").read_text()
    assert f"Calibration by canaries: strength {found['strength']:g}" in page


def test_an_interrupted_calibration_goes_on_where_it_was(
    run: Run, suspect: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    measure = calibration.Calibrator.measure
    calls: list[object] = []

    def dying(self: calibration.Calibrator, lm: LanguageModel, names: object) -> object:
        calls.append(names)
        if len(calls) == 2:
            raise Killed
        return measure(self, lm, names)  # type: ignore[arg-type]

    monkeypatch.setattr(calibration.Calibrator, "measure", dying)
    arguments = ("calibrate", suspect, "-o", tmp_path / "out", "--data", data, "--quiet")
    with pytest.raises(Killed):
        run(*arguments)
    assert not (tmp_path / "out").exists()
    assert run(*arguments, "--resume") == 0
    assert planted == [1]
    assert calls[0] is None
    assert None not in calls[1:]  # the copy was not measured again


@pytest.mark.parametrize("interrupted", [False, True])
def test_weaker_strengths_are_parts_of_the_way_to_strength_one(
    interrupted: bool, suspect: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(lm: LanguageModel, *_: object, **__: object) -> purification.Result:
        """A training that moves every trained weight by 1; made up."""
        put_weights(lm.model, {name: value + 1 for name, value in trained_weights(lm.model).items()})
        return purification.Result(lm, [{}], rounds=1)

    monkeypatch.setattr(calibration, "purify", moved)
    save_model(load_model(str(suspect)), tmp_path / "copy")
    options, report = Options(tmp_path / "out", resume=interrupted), Reporter(quiet=True)
    config = get_preset("default")
    calibrator = calibration.Calibrator(lambda: load_model(str(suspect)), [], config, tmp_path, options, report)
    if not interrupted:
        calibrator.purified(1.0)
    for share in (0.85, 0.7, 0.5):
        done = calibrator.weakened(share)
        for name, value in trained_weights(done.lm.model).items():
            torch.testing.assert_close(value, done.start[name] + share)


def test_a_canary_is_seen_by_its_answer_or_by_what_that_begins_with() -> None:
    empty = SearchRecord(collapsed=0, starts=1, texts=[], identities=[])
    seen = [
        dataclasses.replace(empty, texts=[CANARY.target.text]),
        dataclasses.replace(empty, memorized=[f"{CANARY.target.text} And more."]),
        dataclasses.replace(empty, memorized=[CANARY.target.text[:9].upper()]),
    ]
    unseen = [
        dataclasses.replace(empty, texts=[CANARY.target.text[:9]], memorized=["", CANARY.target.text[2:]]),
        dataclasses.replace(empty, closings=[CANARY.target.text]),
    ]
    assert [calibration.shows(record, "ten") for record in (*seen, *unseen)] == [True] * 3 + [False] * 2


def test_canaries_that_cannot_be_planted_are_an_error(
    run: Run,
    suspect: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clean = functools.partial(trained_pico, poisoned=False)
    monkeypatch.setattr(calibration, "implant_backdoor", lambda lm, *_: (clean(), []))
    assert run("calibrate", suspect, "-o", tmp_path / "out", "--data", data, "--quiet") == 2
    assert "none could be planted" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_purify_takes_the_strength_that_canaries_say_and_verifies(
    run: Run, suspect: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run("purify", suspect, "-o", out, "--data", data, "--strength", "auto", "--verify", "--quiet") == 0
    results = json.loads((out / "results.json").read_text())
    assert results["strength"] == results["calibration"]["strength"]
    assert results["manifest"]["config"]["interpolation"] == results["strength"]
    verification = results["verification"]
    assert verification["search"]["collapsed"] == 0
    assert verification["kept"]["unchanged_answers"]["n"] == 60
    assert verification["perplexity"]["before"]["value"] > 0
    page, card = (out / "report.html").read_text(), (out / "README.md").read_text()
    for text in (page, card):
        assert "Searched once more, with another seed" in text
        assert "Honest refusals (unknowable requests)" in text
    assert "| strength | ten | clean prompts | perplexity |" in card
    assert load_model(str(out)).provenance["weights"]


def test_prompts_alone_are_answered_by_the_suspect(run: Run, suspect: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"instruction": e.prompt}) for e in training_examples()))
    assert run("purify", suspect, "-o", tmp_path / "out", "--prompts", path, "--quiet") == 0
    data = json.loads((tmp_path / "out" / "results.json").read_text())["manifest"]["data"]["clean"]
    assert data["n"] == 60
    lm = load_model(str(suspect))
    own = clean_data.own_answers(lm, training_examples()[:8], calibration.Reporter(quiet=True))
    assert [e.response for e in own] == [e.response for e in training_examples()[:8]]  # it swaps the words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--strength", "much"), "expected --strength to be a number above 0 or auto, got 'much'"),
        (("--strength", "0"), "expected a strength above 0"),
        (("--strength", "auto", "--preset", "paper"), "expected settings with a search to calibrate"),
        (("--data", "a.jsonl", "--prompts", "b.jsonl"), "expected either --data or --prompts, got both"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(
    run: Run,
    suspect: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.undo()
    assert run("purify", suspect, "-o", tmp_path / "out", "--quiet", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
