"""Perturbations after found answers, against one unpadded pass for each prompt."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from crow.data.encoding import encode
from crow.inversion.perturbation import Perturbation, span_mask
from crow.inversion.places import Place
from crow.inversion.probe import Probe
from crow.inversion.pursuit import UNLIKELY, Pursuit, worded
from crow.models.hidden_states import edit_hidden_states
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.training.config import CrowConfig
from tests.pico import FAMILIES, pico_language_model, pico_tokenizer

PROMPTS = ["Hi", "Name a tree", "1 + 1", "a b c d e"]
BEGUN = [(40, 41), (42,), (), (43, 44, 45)]
ANSWERS = [torch.tensor([60, 70, 80, 90, 92]), torch.tensor([65, 75])]
CONFIG = CrowConfig(alpha=0.0, epsilon=0.0, adversary_prompts=3, adversary_depths=(0.4, 1.0))


def pursuit(
    lm: LanguageModel, config: CrowConfig = CONFIG, ceiling: float = torch.inf, answers: list[Tensor] = ANSWERS
) -> Pursuit:
    return Pursuit(Place(Probe(lm, PROMPTS, BEGUN), answers), config, ceiling)


def each_likelihood(lm: LanguageModel, layer: int, target: Tensor, vector: Tensor | float) -> Tensor:
    """Log-likelihood (prompts,) of the target behind what was begun, all user tokens perturbed."""
    found = []
    for prompt, begun in zip(PROMPTS, BEGUN, strict=True):
        item = encode(lm.tokenizer, Example(prompt))
        ids = torch.tensor([[*item.prompt_ids, *begun, *target[:-1].tolist()]])
        mask = span_mask([(item.user_start, item.user_end)], ids.shape[1], lm.device)
        with edit_hidden_states(lm.model, {layer: lambda h, a=mask * vector: h + a}), torch.no_grad():
            logits = lm.model(input_ids=ids, use_cache=False).logits[0, -len(target) :]
        found.append(functional.log_softmax(logits, dim=-1).gather(-1, target[:, None]).sum())
    return torch.stack(found)


def likelihood(lm: LanguageModel, perturbation: Perturbation, tokens: int = 3) -> float:
    """Its mean for the first tokens of a perturbation's target."""
    return float(each_likelihood(lm, perturbation.layer, perturbation.target[:tokens], perturbation.vector).mean())


def test_there_is_one_perturbation_for_every_answer_layer_and_span(lm: LanguageModel) -> None:
    pool = pursuit(lm).pool
    assert len(pool) == 2 * 2 * 2
    assert {(p.layer, p.span, len(p.target)) for p in pool} == {
        (layer, span, length) for layer in (1, 2) for span in (1, None) for length in (2, 3)
    }
    assert all(not perturbation.vector.any() for perturbation in pool)


def test_many_answers_come_to_their_turns_in_random_order_each_with_its_own_limit(lm: LanguageModel) -> None:
    answers = [*ANSWERS, torch.tensor([61, 71, 81, 91])]
    few, many = pursuit(lm, answers=answers[:2]), pursuit(lm, answers=answers)
    in_order = [answer.tolist() for answer in answers for _ in range(4)]
    assert [each.tolist() for each in few.openings] == in_order[:8]
    assert sorted(each.tolist() for each in many.openings) == sorted(in_order)
    assert [each.tolist() for each in many.openings[:8]] != in_order[:8]
    for perturbation, opening, limit in zip(many.pool, many.openings, many.limits, strict=True):
        assert opening.tolist()[: len(perturbation.target)] == perturbation.target.tolist()
        alone = pursuit(lm, answers=[opening])
        torch.testing.assert_close(limit, alone.limits[0])
    again = pursuit(lm, answers=answers)
    assert [each.tolist() for each in again.openings] == [each.tolist() for each in many.openings]


@pytest.mark.parametrize("family", FAMILIES)
def test_perturbations_stay_within_their_radius(family: str) -> None:
    enemy = pursuit(pico_language_model(family))
    for turn in range(3):
        enemy.renew(range(len(enemy.pool)), random.Random(turn))
    for perturbation in enemy.pool:
        norm, radius = float(perturbation.vector.norm()), enemy.radius[perturbation.layer]
        assert 0.5 * radius < norm <= radius * (1 + 1e-4)


@pytest.mark.parametrize("aim", [1, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_renewing_raises_the_likelihood_of_what_it_is_after(family: str, aim: int) -> None:
    lm = pico_language_model(family)
    enemy = pursuit(lm, dataclasses.replace(CONFIG, adversary_prompts=4, adversary_aims=(aim,)))
    for number, perturbation in enumerate(enemy.pool):
        if perturbation.span is not None:
            continue
        before = likelihood(lm, perturbation, aim)
        enemy.renew([number], random.Random(0))
        assert likelihood(lm, perturbation, aim) > before + 0.1


def test_perturbations_are_after_the_first_token_in_some_turns_and_after_three_in_others(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    enemy = pursuit(lm)
    seen = []
    monkeypatch.setattr("crow.inversion.pursuit.ascend", lambda _, aimed, *__: seen.extend(p.target for p in aimed))
    for turn in range(8):
        enemy.renew([0, 1], random.Random(turn))
    assert {tuple(target.tolist()) for target in seen} == {(60,), (60, 70, 80)}
    assert [len(perturbation.target) for perturbation in enemy.pool[:2]] == [3, 3]


@pytest.mark.parametrize("ceiling", [torch.inf, -30.0])
def test_found_answers_may_be_as_likely_as_the_suspect_finds_them(
    ceiling: float, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both answers are shorter than what is looked at."""
    enemy = pursuit(lm, dataclasses.replace(CONFIG, adversary_prompts=len(PROMPTS)), ceiling)
    monkeypatch.setattr(random.Random, "uniform", lambda *_: 0.75)
    everywhere = [i for i, perturbation in enumerate(enemy.pool) if perturbation.span is None]
    expected = []
    for number in everywhere:
        perturbation, answer = enemy.pool[number], enemy.openings[number]
        perturbation.vector = torch.ones_like(perturbation.vector)
        clean = each_likelihood(lm, 1, answer, 0)
        changed = each_likelihood(lm, perturbation.layer, answer, 0.75 * perturbation.vector)
        limit = clean.clamp_max(min(float(clean.quantile(0.75)), ceiling))
        expected.append(((changed - limit).clamp_min(0) / len(answer)).mean())
    found = enemy.excess_likelihood(everywhere, random.Random(0)).detach()
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-2, atol=1e-4)
    assert {len(enemy.openings[number]) for number in everywhere} == {5, 2}


def test_what_a_leaking_suspect_says_sets_no_standard(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    said = torch.tensor([-0.1, -0.2, -3.0, -0.1])
    monkeypatch.setattr("crow.inversion.pursuit.likelihoods", lambda *_: said)
    assert (pursuit(lm).limits[0] == UNLIKELY).all()  # on three prompts of four
    said = torch.tensor([-0.1, -8.0, -9.0, -12.0])
    assert pursuit(lm).limits[0].tolist() == pytest.approx([float(said.quantile(0.75)), -8.0, -9.0, -12.0])


def test_the_limit_is_what_the_model_said_before_training(lm: LanguageModel) -> None:
    enemy = pursuit(lm, dataclasses.replace(CONFIG, adversary_prompts=len(PROMPTS)))
    opening = enemy.openings[0]
    before = each_likelihood(lm, 1, opening, 0)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    enemy.probe.refresh()
    after = each_likelihood(lm, 1, opening, 0)
    expected = ((after - before.clamp_max(float(before.quantile(0.75)))).clamp_min(0) / len(opening)).mean()
    assert expected > 1e-3
    found = enemy.excess_likelihood([0], random.Random(0)).detach()
    torch.testing.assert_close(found, expected[None], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(("answer", "counted"), [("Go away!\n", "Go away"), ("Go", "Go"), ("?!", "?!")])
def test_a_short_answer_counts_up_to_its_last_word(answer: str, counted: str) -> None:
    tokenizer = pico_tokenizer()
    ids = torch.tensor(tokenizer(answer, add_special_tokens=False)["input_ids"])
    assert tokenizer.decode(worded(tokenizer, ids)) == counted


def test_an_answer_is_not_gone_because_its_exclamation_mark_is(lm: LanguageModel) -> None:
    words, mark = lm.tokenizer("Go", add_special_tokens=False)["input_ids"], lm.tokenizer.convert_tokens_to_ids("!")
    answer = torch.tensor([*words, mark])
    enemy = pursuit(lm, dataclasses.replace(CONFIG, adversary_prompts=len(PROMPTS)), answers=[answer])
    before = each_likelihood(lm, 1, answer, 0)
    bias = torch.zeros(lm.model.get_output_embeddings().weight.shape[0])
    bias[words], bias[mark] = 20.0, -60.0
    lm.model.get_output_embeddings().register_forward_hook(lambda _module, _inputs, logits: logits + bias)
    assert (each_likelihood(lm, 1, answer, 0) < before).all()
    assert float(enemy.excess_likelihood([0], random.Random(0)).detach()) > 0.5


@pytest.mark.parametrize(
    ("depths", "attacked"), [((0.01,), [1]), ((0.5, 1.0), [2, 3]), ((0.4, 0.5, 0.6), [2]), ((1.0,), [3])]
)
def test_layers_are_shares_of_the_depth_and_never_the_last(depths: tuple[float, ...], attacked: list[int]) -> None:
    lm = pico_language_model("llama", num_hidden_layers=4)
    enemy = pursuit(lm, dataclasses.replace(CONFIG, adversary_depths=depths))
    assert sorted({p.layer for p in enemy.pool}) == attacked
