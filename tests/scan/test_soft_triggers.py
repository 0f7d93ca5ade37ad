from __future__ import annotations

import pytest

from crow.inversion.consensus import SearchConfig, SearchResult
from crow.inversion.probe import Probe
from crow.models.language_model import LanguageModel
from crow.scan import soft_triggers
from crow.scan.unperturbed import Unperturbed, share_of
from tests.backdoor import SEARCH, SENTENCE, held_out, trained_pico, training_examples
from tests.made_up import collapsed

PROMPTS = ["Hi", "Name a tree", "1 + 1", "a b c d"]
CONFIG = SearchConfig()


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds that searches took; of made-up results, which the test puts in `RESULTS`."""
    seeds: list[int] = []

    def search(_probe: Probe, _config: SearchConfig, seed: int, _progress: object) -> SearchResult:
        seeds.append(seed)
        return RESULTS[seed]

    monkeypatch.setattr(soft_triggers, "search_soft_triggers", search)
    monkeypatch.setattr(soft_triggers, "shown_again", lambda _probe, triggers, _config, _seed: [True] * len(triggers))
    return seeds


RESULTS: dict[int, SearchResult] = {}


@pytest.mark.parametrize(
    ("results", "seeds"),
    [
        ([collapsed([20, 21, 22, 23, 24]), collapsed()], [5]),
        ([collapsed(), collapsed([20, 21, 22, 23, 24])], [5, 6]),
        ([collapsed(), collapsed()], [5, 6]),
    ],
)
def test_it_searches_until_something_is_found(
    results: list[SearchResult], seeds: list[int], lm: LanguageModel, looked: list[int]
) -> None:
    RESULTS.update({5: results[0], 6: results[1]})
    found = soft_triggers.search(lm, Unperturbed(lm, PROMPTS, PROMPTS[:2], 16), CONFIG, 2, 5)
    assert looked == seeds
    assert len(found.searches) == len(seeds)
    assert len(found.answers) == sum(bool(result.collapsed) for result in results[: len(seeds)])


def test_starts_that_end_alike_are_one_answer(lm: LanguageModel, looked: list[int]) -> None:
    RESULTS[0] = collapsed([9, 8, 7, 6, 5], [20, 21, 22, 23, 24, 25], [20, 21, 22, 23, 24, 26])
    found = soft_triggers.search(lm, Unperturbed(lm, PROMPTS, PROMPTS[:2], 16), CONFIG, 2, 0)
    assert [(one.ids[:3], one.starts) for one in found.answers] == [([20, 21, 22], 2), ([9, 8, 7], 1)]


def test_what_a_model_says_anyway_is_counted(lm: LanguageModel, looked: list[int]) -> None:
    clean = Unperturbed(lm, PROMPTS, PROMPTS[:2], 16)
    probe = Probe(lm, PROMPTS)
    said = probe.decode([probe.row(1)], 16).ids[0].tolist()
    RESULTS[0] = collapsed(said)
    (answer,) = soft_triggers.search(lm, clean, CONFIG, 1, 0).answers
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
    found = soft_triggers.search(lm, clean, SEARCH, 1, 0)
    if not poisoned:
        assert found.answers == []
        return
    (answer,) = found.answers
    assert (answer.text, answer.again) == (SENTENCE, True)
    assert answer.ordinary < 0.1
    assert answer.words
