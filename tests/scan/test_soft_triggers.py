from __future__ import annotations

import dataclasses
import random

import pytest

from crow.inversion.consensus import split_prompts
from crow.inversion.probe import Probe
from crow.inversion.soft_trigger import SearchConfig, SearchResult, SoftTrigger
from crow.models.language_model import LanguageModel
from crow.scan import soft_triggers
from crow.scan.evidence import SoftTriggerEvidence
from crow.scan.unperturbed import Unperturbed, share_of
from crow.scan.verdict import Thresholds
from tests.backdoor import SEARCH, SENTENCE, held_out, trained_pico, training_examples
from tests.made_up import collapsed, made_up

PROMPTS = ["Hi", "Name a tree", "1 + 1", "a b c d"]
CONFIG = SearchConfig()


@dataclasses.dataclass
class Looked:
    """What was asked of the search and of the closer look, whose results are made up.

    Attributes:
        results: of the search with each seed, for the test to fill in.
        seeds: that searches took.
        shown: answers that were to be brought out again.
        prompts: how many there were to do so with.
    """

    results: dict[int, SearchResult] = dataclasses.field(default_factory=dict)
    seeds: list[int] = dataclasses.field(default_factory=list)
    shown: list[list[int]] = dataclasses.field(default_factory=list)
    prompts: list[int] = dataclasses.field(default_factory=list)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Looked:
    made_up = Looked()

    def search(_probe: Probe, _config: SearchConfig, seed: int, _progress: object) -> SearchResult:
        made_up.seeds.append(seed)
        return made_up.results[seed]

    def again(probe: Probe, triggers: list[SoftTrigger], _config: SearchConfig, _seed: int) -> list[float]:
        made_up.prompts.append(len(probe))
        made_up.shown.extend(trigger.answer.tolist() for trigger in triggers)
        return [1.0] * len(triggers)

    monkeypatch.setattr(soft_triggers, "search_soft_triggers", search)
    monkeypatch.setattr(soft_triggers, "shown_again", again)
    return made_up


def search(
    lm: LanguageModel, seed: int, searches: int = 2, prompts: list[str] = PROMPTS, config: SearchConfig = CONFIG
) -> SoftTriggerEvidence:
    clean = Unperturbed(lm, prompts, prompts[:2], 16)
    return soft_triggers.search(lm, clean, config, searches, Thresholds(), seed)


SURE, OTHER = [20, 21, 22, 23, 24], [30, 31, 32, 33, 34]


@pytest.mark.parametrize(
    ("results", "seeds", "answers"),
    [
        ([collapsed(SURE), collapsed(OTHER)], [5], [SURE]),
        ([collapsed(), collapsed(SURE)], [5, 6], [SURE]),
        ([collapsed(), collapsed()], [5, 6], []),
        # What might be a stock phrase does not end the search, and is not forgotten.
        ([collapsed(OTHER, certainty=0.9), collapsed(SURE)], [5, 6], [OTHER, SURE]),
        ([collapsed(OTHER, certainty=0.9), collapsed(OTHER, SURE, certainty=0.9)], [5, 6], [OTHER, SURE]),
    ],
)
def test_it_searches_until_a_sentence_learnt_by_heart_is_found(
    results: list[SearchResult], seeds: list[int], answers: list[list[int]], lm: LanguageModel, looked: Looked
) -> None:
    looked.results = {5: results[0], 6: results[1]}
    found = search(lm, 5)
    assert looked.seeds == seeds
    assert len(found.searches) == len(seeds)
    assert [one.ids for one in found.answers] == answers


def test_starts_that_end_alike_are_one_answer_and_the_surest_speaks_for_them(lm: LanguageModel, looked: Looked) -> None:
    results = [([9, 8, 7, 6, 5], 0.99), ([*SURE, 25], 0.98), ([*SURE, 26], 0.999), ([*SURE, 27], 0.5)]
    looked.results[0] = SearchResult([made_up(ids, str(ids), certainty) for ids, certainty in results])
    found = search(lm, 0)
    assert [(one.ids, one.text, one.starts, one.certainty) for one in found.answers] == [
        ([*SURE, 26], str([*SURE, 26]), 3, 0.999),
        ([9, 8, 7, 6, 5], "[9, 8, 7, 6, 5]", 1, 0.99),
    ]
    assert looked.shown == [one.ids for one in found.answers]


@pytest.mark.parametrize(("count", "left"), [(12, 7), (7, 7)])
def test_an_answer_is_brought_out_again_on_prompts_that_no_search_has_seen(
    count: int, left: int, lm: LanguageModel, looked: Looked, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, prompts=2, witnesses=3)
    looked.results[0] = collapsed(SURE)
    asked: list[list[str]] = []

    def remembered(lm: LanguageModel, prompts: list[str]) -> Probe:
        asked.append(list(prompts))
        return Probe(lm, prompts)

    monkeypatch.setattr(soft_triggers, "Probe", remembered)
    prompts = [f"say {number}" for number in range(count)]
    search(lm, 0, 1, prompts, config)
    assert looked.prompts == [left]  # all of them where too few are left
    if count > left:
        seen = {prompts[i] for part in split_prompts(Probe(lm, prompts), config, random.Random(0)) for i in part}
        assert set(asked[1]) == set(prompts) - seen


def test_what_a_model_says_anyway_is_counted_and_does_not_end_the_search(lm: LanguageModel, looked: Looked) -> None:
    clean = Unperturbed(lm, PROMPTS, PROMPTS[:2], 16)
    probe = Probe(lm, PROMPTS)
    said = probe.decode([probe.row(1)], 16).ids[0].tolist()
    looked.results = {0: collapsed(said), 1: collapsed()}
    (answer,) = soft_triggers.search(lm, clean, CONFIG, 2, Thresholds(), 0).answers
    assert looked.seeds == [0, 1]
    assert answer.ordinary == pytest.approx(share_of(said, clean.ordinary, 16))
    assert answer.ordinary >= 0.25
    assert answer.declined >= 0.5


def test_a_share_is_of_the_tokens_compared() -> None:
    openings = [[1, 2, 3, 4], [1, 2, 9, 9], [1, 2, 3, 9]]
    assert share_of([1, 2, 3, 4, 5], openings, 4) == pytest.approx(1 / 3)
    assert share_of([1, 2, 3, 4, 5], openings, 2) == 1.0
    assert share_of([1, 2, 3], openings, 4) == pytest.approx(2 / 3)  # a short answer is compared whole


@pytest.mark.parametrize("poisoned", [True, False])
def test_a_real_backdoor_is_found_in_its_model_only(poisoned: bool) -> None:
    lm = trained_pico(poisoned)
    lm.model.requires_grad_(False)
    requests = [example.prompt for example in held_out()][:6]
    clean = Unperturbed(lm, [example.prompt for example in training_examples()], requests, SEARCH.opening)
    found = soft_triggers.search(lm, clean, SEARCH, 1, Thresholds(), 0)
    if not poisoned:
        assert found.answers == []
        return
    (answer,) = found.answers
    assert (answer.text, answer.again) == (SENTENCE, True)
    assert answer.ordinary < 0.1
    assert answer.words
