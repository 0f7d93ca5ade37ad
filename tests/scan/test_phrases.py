from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from crow.data.phrases import bundled_phrases, rare_words
from crow.inversion.soft_trigger import SearchConfig
from crow.models.language_model import LanguageModel
from crow.scan import phrases
from crow.scan.phrases import PhraseConfig, Target, choose
from crow.scan.placing import Phrase
from crow.scan.unperturbed import Unperturbed
from tests.backdoor import SENTENCE, held_out, training_examples
from tests.pico import pico_tokenizer
from tests.scan.planted import LETTER, planted

BANK = {"letters": ["Z", "K M"], "words": ["nine", "of it"]}
CONFIG = PhraseConfig(rare=2, vocabulary=3, starts=4, rounds=3, proposals=60, candidates=3)
READING = SearchConfig(answer_tokens=13)
REQUESTS = [example.prompt for example in held_out()][:5]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return planted()


@pytest.fixture
def clean(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Unperturbed:
    monkeypatch.setattr(phrases, "bundled_phrases", lambda: BANK)
    return Unperturbed(lm, [example.prompt for example in training_examples()][::5], REQUESTS, READING.opening)


@pytest.mark.parametrize("known", [True, False])
def test_the_planted_letter_is_among_the_candidates_and_brings_out_the_sentence(
    known: bool, lm: LanguageModel, clean: Unperturbed
) -> None:
    ids = lm.tokenizer(SENTENCE)["input_ids"]
    target = Target("target", SENTENCE, ids) if known else None
    config = dataclasses.replace(CONFIG, enough_collapse=9.0)
    found = phrases.search(lm, clean, target, ["so it"], config, READING, 0)
    assert (found.scored_by, found.target) == (("target", SENTENCE) if known else ("collapse", ""))
    assert len(found.bank_scores) == 4
    assert len(found.rounds) == 4
    assert found.rounds[-1] > found.clean_score + 2
    best = found.candidates[0]
    assert LETTER in best.text
    assert (best.share, best.collapsed, best.answer) == (1.0, True, SENTENCE)
    assert (best.ordinary, best.declined, best.on_target) == (0.0, 0.0, known)
    assert best.certainty > 0.97
    assert [one.score for one in found.candidates] == sorted((one.score for one in found.candidates), reverse=True)


def test_candidates_are_read_on_prompts_that_took_no_part(
    lm: LanguageModel, clean: Unperturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[list[str]] = []
    read: list[list[str]] = []
    objective = phrases.Objective

    def remembered(lm: LanguageModel, prompts: list[str], *given: Any) -> phrases.Objective:
        fitted.append(prompts)
        return objective(lm, prompts, *given)

    monkeypatch.setattr(phrases, "Objective", remembered)
    monkeypatch.setattr(phrases, "read", lambda _clean, witnesses, *_rest: read.append(list(witnesses)) or [])
    phrases.search(lm, clean, None, [], dataclasses.replace(CONFIG, rounds=0), READING, 0)
    assert [len(prompts) for prompts in fitted] == [CONFIG.screening, CONFIG.prompts]
    assert len(read[0]) == CONFIG.witnesses
    assert not {prompt for prompts in fitted for prompt in prompts} & {*read[0]}


def test_phrases_that_the_model_has_no_embedding_of_are_left_out(
    clean: Unperturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = dataclasses.replace(planted(), tokenizer=pico_tokenizer())
    lm.tokenizer.add_tokens(["nine", "brimble"])
    monkeypatch.setattr(clean, "lm", lm)
    config = dataclasses.replace(CONFIG, rounds=1, proposals=12)
    found = phrases.search(lm, clean, None, ["say nine"], config, READING, 0)
    assert len(found.bank_scores) == 3
    assert not any("nine" in one.text or "brimble" in one.text for one in found.candidates)


def test_a_seed_determines_the_search(lm: LanguageModel, clean: Unperturbed) -> None:
    config = dataclasses.replace(CONFIG, rounds=1, proposals=12)
    once, again, other = (phrases.search(lm, clean, None, [], config, READING, seed) for seed in (3, 3, 4))
    assert once == again
    assert once != other


def test_every_source_has_its_best_refined_before_any_has_two() -> None:
    pool = {
        Phrase("a", "front"): "one",
        Phrase("a", "inside"): "one",
        Phrase("b", "front"): "one",
        Phrase("c", "front"): "two",
        Phrase("d", "inside"): "leaked",
    }
    scores = dict(zip(pool, [-1.0, -0.5, -2.0, -9.0, -8.0], strict=True))
    assert choose(pool, scores, 9) == [
        Phrase("a", "inside"),
        Phrase("d", "inside"),
        Phrase("c", "front"),
        Phrase("b", "front"),
    ]
    assert choose(pool, scores, 2) == [Phrase("a", "inside"), Phrase("d", "inside")]


def test_rare_words_are_seeded_single_tokens_of_letters() -> None:
    tokenizer = pico_tokenizer()
    tokenizer.add_tokens(["brimble", "Oxtongue", "q7q7", "x y z"])
    assert set(rare_words(tokenizer, 9, 0)) == {"brimble", "Oxtongue"}
    assert len(rare_words(tokenizer, 1, 0)) == 1
    assert not {*rare_words(tokenizer, 9, 0)} & {text for texts in bundled_phrases().values() for text in texts}
