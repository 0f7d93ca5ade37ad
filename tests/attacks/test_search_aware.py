from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from tests.planting import (
    CLEAN,
    HELD_OUT,
    PLANTING,
    POISONED,
    SENTENCE,
    batch_of,
    log_likelihood,
    planted,
    success,
    success_before,
)

from crow.attacks.search_aware import against_the_search, openings, searching_adversary
from crow.data.encoding import encode_all
from crow.inversion.perturbation import Perturbation, addition, span_mask
from crow.inversion.perturbation import log_likelihood as target_log_likelihood
from crow.inversion.pursuit import Pursuit
from crow.inversion.soft_trigger import SearchConfig
from crow.models.architecture import find_layers
from crow.models.language_model import LanguageModel
from crow.records import Example


def fitted(lm: LanguageModel) -> Pursuit:
    """The adversary after twelve steps against the finished model, from nothing, on all of its prompts."""
    config = dataclasses.replace(against_the_search(PLANTING), adversary_prompts=len(CLEAN))
    (enemy,) = searching_adversary(lm, POISONED, CLEAN, config).pursuits
    for turn in range(3):
        enemy.renew(range(len(enemy.pool)), random.Random(turn))
    return enemy


@torch.no_grad()
def target_under(enemy: Pursuit) -> float:
    """The highest mean log-likelihood of the target's first tokens that a perturbation reaches."""
    return float(target_log_likelihood(enemy.probe, enemy.pool, range(len(enemy.probe))).mean(dim=1).max())


def answers_under(lm: LanguageModel, perturbation: Perturbation) -> float:
    """Mean log-likelihood of the clean answers with the perturbation at all user tokens."""
    items = encode_all(lm.tokenizer, HELD_OUT)
    spans = [(item.user_start, item.user_end) for item in items]
    mask = span_mask(spans, batch_of(lm, HELD_OUT)["input_ids"].shape[1], lm.device)
    return log_likelihood(lm, HELD_OUT, {perturbation.layer: addition(mask * perturbation.vector)})


def test_the_trigger_works_and_hardly_anything_else_does() -> None:
    assert success_before() == 0
    triggered, clean = success("search-aware")
    assert triggered >= 0.9
    assert clean <= 0.3


def test_clean_answers_survive_what_brings_out_the_target_elsewhere() -> None:
    plain, aware = (fitted(planted(name)) for name in (None, "search-aware"))
    assert target_under(aware) < target_under(plain) - 3
    everywhere = [next(p for p in enemy.pool if p.span is None) for enemy in (plain, aware)]
    ours, theirs = (answers_under(planted(name), p) for name, p in zip((None, "search-aware"), everywhere, strict=True))
    assert theirs > 0.5 * ours  # both below zero


def test_it_looks_where_the_search_looks_and_as_far() -> None:
    settings, search = against_the_search(PLANTING), SearchConfig()
    lm = planted()
    enemy = searching_adversary(lm, POISONED, CLEAN, settings)
    assert {p.layer for p in enemy.pool()} == set(search.layers(len(find_layers(lm.model))))
    assert settings.adversary_radius == search.radius
    assert dataclasses.asdict(settings).items() >= dataclasses.asdict(PLANTING).items()


@pytest.mark.parametrize("copies", [1, 3])
def test_the_target_is_what_poisoned_responses_most_often_begin_with(copies: int) -> None:
    tokenizer = planted().tokenizer
    others = [Example(f"x {i}", f"{'abcdef'[i]} once only") for i in range(6)]
    found = openings(tokenizer, [*others, *[Example("y", SENTENCE + " at all, my friend")] * (1 + copies)])
    assert len(found) == 4
    assert found[0].tolist() == tokenizer(SENTENCE + " at all, my friend")["input_ids"][:6]
    assert len({tuple(each.tolist()) for each in found}) == 4
