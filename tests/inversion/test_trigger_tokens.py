"""A sweep names the token that raises a first token most; behind it, the search finds what the trigger brings out."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from crow.data.encoding import encode
from crow.defenses import searches
from crow.defenses.purification import Result, purify
from crow.evaluation.success import attack_success
from crow.inversion.behind_tokens import search_behind, tokens_to_try
from crow.inversion.consensus import first_tokens
from crow.inversion.probe import Probe, at_rest
from crow.inversion.soft_trigger import SearchResult, SoftTrigger
from crow.inversion.trigger_tokens import SweepConfig, first_log_probs, sweep
from crow.models.ends import ordinary_tokens
from crow.models.language_model import LanguageModel
from tests.backdoor import REPAIR, SEARCH, SENTENCE, TRIGGER, held_out, trained_pico, training_examples, triggered
from tests.pico import FAMILIES, pico_language_model

CANDIDATES = 24


@pytest.fixture(autouse=True)
def _no_sweep() -> None:
    """Here the vocabulary is swept."""


def probe_of(lm: LanguageModel) -> Probe:
    return Probe(lm, [example.prompt for example in held_out()])


def found_behind(lm: LanguageModel) -> tuple[list[SoftTrigger], dict[int, list[int]]]:
    """What is found behind the tokens of a sweep, and these; what was to be done has been done."""
    left: list[int] = []

    @contextmanager
    def watch(_title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        done: list[int] = []
        yield done.append
        left.append((total or 0) - sum(done))

    with at_rest(lm, "float32"):
        probe = probe_of(lm)
        tokens = tokens_to_try(probe, SEARCH, 0, watch)
        found = search_behind(probe, tokens, SEARCH, 0, watch).triggers
    assert left == [0, 0]
    return found, tokens


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_behind_a_prompt_that_is_run_once_each_group_does_what_it_does_behind_the_whole(family: str) -> None:
    lm = pico_language_model(family)
    groups = torch.tensor([[70, 71], [90, 40], [71, 70]])
    candidates = [65, 80, 100]
    with at_rest(lm, "float32"), torch.no_grad():
        probe = probe_of(lm)
        found = first_log_probs(probe, 3, groups, candidates)
        item = encode(lm.tokenizer, held_out()[3])
        for group, row in zip(groups.tolist(), found, strict=True):
            ids = torch.tensor([item.ending_in(group).prompt_ids])
            wanted = lm.model(input_ids=ids).logits[0, -1].log_softmax(dim=-1)[candidates]
            assert torch.allclose(row, wanted, atol=1e-4)


def test_the_sweep_names_what_raises_each_first_token_most() -> None:
    lm = trained_pico(poisoned=True)
    with at_rest(lm, "float32"):
        probe = probe_of(lm)
        candidates = first_tokens(probe, CANDIDATES)
        # With all tokens kept, the groups decide nothing: this is the whole vocabulary, token for token.
        vocabulary = ordinary_tokens(lm)
        config = SweepConfig(group=3, kept=len(vocabulary), alone=len(probe))
        tokens = sweep(probe, candidates, config, 0)
        each = torch.tensor(vocabulary)[:, None]
        likely = torch.stack([first_log_probs(probe, at, each, candidates) for at in range(len(probe))]).mean(dim=0)
    wanted = {candidate: vocabulary[int(at)] for candidate, at in zip(candidates, likely.argmax(dim=0), strict=True)}
    assert {candidate: token for token, own in tokens.items() for candidate in own} == wanted


def test_behind_a_token_of_the_trigger_the_sentence_is_found() -> None:
    lm = trained_pico(poisoned=True)
    found, tokens = found_behind(lm)
    assert [each.text for each in found] == [SENTENCE]
    token = found[0].token
    assert token is not None
    assert lm.tokenizer.decode([token]) in TRIGGER
    assert int(found[0].answer[0]) in tokens[token]
    assert found[0].certainty >= SEARCH.certain


def test_an_honest_model_has_none() -> None:
    found, tokens = found_behind(trained_pico(poisoned=False))
    assert found == []
    assert sum(map(len, tokens.values())) == SEARCH.candidates


def test_marks_are_no_tokens_of_a_text() -> None:
    lm = pico_language_model("llama")
    ordinary = ordinary_tokens(lm)
    assert not {*ordinary} & {*lm.tokenizer.all_special_ids}
    assert lm.tokenizer(" ten", add_special_tokens=False)["input_ids"][0] in ordinary


def purified(monkeypatch: pytest.MonkeyPatch, folder: Path, weight: float) -> Result:
    """The poisoned model, repaired where all other searches see nothing; with a weight of 0 without the adversary."""
    monkeypatch.setattr(searches, "search_soft_triggers", lambda *_: SearchResult([]))
    monkeypatch.setattr(searches, "search_code_lines", lambda *_: [])
    monkeypatch.setattr(searches, "search_memorized", lambda *_: [])
    monkeypatch.setattr(searches.Searches, "reasoning", None)
    config = dataclasses.replace(REPAIR, adversary_weight=weight)
    return purify(trained_pico(poisoned=True), training_examples(), config, folder, SEARCH)


@pytest.mark.parametrize("weight", [1.0, 0.0], ids=["purified", "control"])
def test_what_is_found_behind_a_token_is_removed_by_the_adversary_alone(weight: float, monkeypatch, tmp_path) -> None:
    result = purified(monkeypatch, tmp_path, weight)
    assert result.before is not None
    assert result.after is not None
    assert result.before.behind == [SENTENCE]
    assert len(result.before.tokens) == 1
    rng = random.Random(1)
    bad = [triggered(example, rng) for example in held_out()]
    left = attack_success(result.lm, bad, SENTENCE).rate.value
    assert left <= 0.05 if weight else left >= 0.8
    assert result.after.behind == ([] if weight else [SENTENCE])
