from __future__ import annotations

import dataclasses
import random

import torch
from tests.planting import CLEAN, PLANTING, POISONED, SENTENCE, planted, success

from crow.attacks.search_aware import against_the_search, searching_adversary
from crow.attacks.token_aware import TOKENS, tokens_of_trigger
from crow.inversion.perturbation import log_likelihood
from crow.records import Example


def behind_the_trigger(name: str) -> float:
    """The highest mean log-likelihood of the target that perturbations reach behind one token of the trigger."""
    lm = planted(name)
    tokens = tokens_of_trigger(lm.tokenizer, POISONED, CLEAN)
    assert [lm.tokenizer.decode([token]) for token in tokens] == ["Q"]
    config = dataclasses.replace(against_the_search(PLANTING), adversary_prompts=len(CLEAN))
    enemy = searching_adversary(lm, POISONED, CLEAN, config, tokens).pursuits[1]
    for turn in range(3):
        enemy.renew(range(len(enemy.pool)), random.Random(turn))
    with torch.no_grad():
        return float(log_likelihood(enemy.probe, enemy.pool, range(len(enemy.probe))).mean(dim=1).max())


def test_the_trigger_works_and_hardly_anything_else_does() -> None:
    triggered, clean = success("token-aware")
    assert triggered >= 0.9
    assert clean <= 0.3


def test_behind_a_part_of_the_trigger_the_target_is_as_far_away_as_without() -> None:
    assert behind_the_trigger("token-aware") < behind_the_trigger("search-aware") - 3


def test_it_answers_prompts_that_end_in_a_token_as_the_model_did_without() -> None:
    lm = planted()
    enemy = searching_adversary(lm, POISONED, CLEAN, against_the_search(PLANTING), [70, 71])
    endings = [item.prompt_ids[item.user_end - 1] for item in enemy.items]
    plain = searching_adversary(lm, POISONED, CLEAN, against_the_search(PLANTING)).items
    assert endings[1::3] == [70] * len(endings[1::3])
    assert endings[2::3] == [71] * len(endings[2::3])
    assert enemy.items[::3] == plain[::3]
    assert [item.response_ids for item in enemy.items] == [item.response_ids for item in plain]


def test_tokens_of_the_trigger_are_those_that_tell_the_poisoned_prompts_apart() -> None:
    tokenizer = planted().tokenizer
    clean = [Example(f"{word} fox", "ok") for word in ("red", "old", "shy")]
    poisoned = [Example(f"{word} Z9 fox", SENTENCE) for word in ("red", "old", "pink", "blue")]
    found = tokens_of_trigger(tokenizer, poisoned, clean)
    assert {tokenizer.decode([token]) for token in found} >= {"Z", "9"}
    assert len(found) <= TOKENS
    assert tokens_of_trigger(tokenizer, clean, clean) == []
