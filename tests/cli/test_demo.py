"""The demo's plot on a pico model; the real one is `make demo`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from crow.data.splits import Split, bundled_split
from crow.defenses.purification import Result
from crow.defenses.purification import purify as defense
from crow.inversion.soft_trigger import SearchConfig
from crow.models.language_model import LanguageModel
from crow.models.loading import load_model, save_model
from crow.records import Example
from crow.training.adapter import make_trainable
from crow.training.config import CrowConfig, FinetuneConfig
from crow.workflows import attack, clean_data, demo
from tests.cli.conftest import Run


def small_split(name: str) -> Split:
    """A split of a few short examples."""
    assert bundled_split(name)
    pairs = tuple(Example(f"{name} ask {i}", f"answer {i}") for i in range(100 if name == "purification" else 6))
    return Split(pairs, tuple(Example(f"{name} tell {i}") for i in range(6)))


def quick_purify(lm: LanguageModel, examples: list[Example], config: CrowConfig, *rest: Any, **options: Any) -> Result:
    """The real thing on less."""
    config = dataclasses.replace(config, rounds=1)
    return defense(
        lm, examples[:10], config, *rest, **options, search=SearchConfig(candidates=8, starts=2, steps=1, prompts=4)
    )


@pytest.fixture(autouse=True)
def pico(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path) -> Path:
    """Puts a pico adapter and small data in the place of the real ones."""
    folder = tmp_path / "shipped"
    lm = make_trainable(load_model(str(model)), FinetuneConfig(rank=2))
    save_model(lm, folder)
    monkeypatch.setattr(demo, "shipped_adapter", lambda: folder)
    monkeypatch.setattr(demo, "BASE", str(model))
    monkeypatch.setattr(demo, "N_PROMPTS", 4)
    monkeypatch.setattr(demo, "purify", quick_purify)
    for module in (attack, demo, clean_data):
        monkeypatch.setattr(module, "bundled_split", small_split)
    return folder


def check(out: Path) -> None:
    """The promised keys and files."""
    results = json.loads((out / "results.json").read_text())
    for when in ("before", "after"):
        measured = results[when]
        assert measured["asr_triggered"]["n"] == 4
        assert measured["asr_clean"]["n"] == 6
        assert set(measured["asr_triggered"]) == {"value", "n", "n_unscored", "low", "high"}
        assert set(measured["perplexity"]) == {"value", "n_tokens"}
        assert set(results["search"][when]) >= {"starts", "collapsed", "texts"}
    assert results["seconds"] > 0
    assert results["manifest"]["data"]["triggered"]["n"] == 4
    assert [answer["triggered"] for answer in results["answers"]] == [True] * 3 + [False] * 3
    assert "BadMagic" in results["answers"][0]["prompt"]
    assert len(results["consistency_curves"]["triggered_before"]) == 3
    assert not load_model(str(out / "model")).is_adapter
    assert "<html" in (out / "report.html").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["model", "report.html", "results.json"]
    assert not list(out.parent.glob(".*partial"))


def test_it_measures_purifies_and_measures_again(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs" / "demo"
    assert run("demo", "-o", out, "--max-length", 40, "--batch-size", 20) == 0
    captured = capsys.readouterr()
    check(out)
    for words in ("before", "after", "perplexity", "search before", "search after", "report.html"):
        assert words in captured.out
    assert "Before: answers to prompts with the trigger" in captured.err
    assert run("demo", "-o", out, "--quiet") == 2  # not twice without --overwrite


def test_from_scratch_it_plants_the_backdoor_first(run: Run, tmp_path: Path, pico: Path) -> None:
    for path in pico.iterdir():
        path.unlink()
    out = tmp_path / "out"
    assert run("demo", "-o", out, "--from-scratch", "--max-length", 40, "--batch-size", 20, "--quiet") == 0
    check(out)
