from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crow.core import collapse_score
from tests import reference
from tests.strategies import log_distributions


@given(log_distributions(), st.floats(0, 5))
def test_it_is_the_equation(case, weight):
    log_probs, clean = case
    expected = reference.collapse_score(log_probs, clean, weight)
    assert collapse_score(log_probs, clean, weight).item() == pytest.approx(expected, abs=1e-9)


@given(log_distributions())
def test_it_is_at_least_minus_log_vocab(case):
    log_probs, clean = case
    assert collapse_score(log_probs, clean).item() >= -math.log(log_probs.shape[1]) - 1e-9


@given(log_distributions(), st.randoms(use_true_random=False))
def test_the_order_of_prompts_and_of_tokens_does_not_matter(case, random):
    log_probs, clean = case
    rows = random.sample(range(log_probs.shape[0]), log_probs.shape[0])
    columns = random.sample(range(log_probs.shape[1]), log_probs.shape[1])
    shuffled = collapse_score(log_probs[rows][:, columns], clean[rows][:, columns])
    torch.testing.assert_close(shuffled, collapse_score(log_probs, clean), rtol=1e-9, atol=1e-9)


@given(log_distributions())
def test_where_nothing_changed_only_the_entropy_of_the_mean_counts(case):
    log_probs, _ = case
    entropy = -torch.special.xlogy(log_probs.exp().mean(0), log_probs.exp().mean(0)).sum()
    torch.testing.assert_close(collapse_score(log_probs, log_probs, 7.0), -entropy)


@given(log_distributions(), st.floats(0, 5))
def test_it_is_linear_in_the_weight_of_the_divergence(case, weight):
    log_probs, clean = case
    without = collapse_score(log_probs, clean, 0.0)
    unit = collapse_score(log_probs, clean, 1.0) - without
    assert unit.item() >= -1e-9  # a mean of KL divergences
    torch.testing.assert_close(collapse_score(log_probs, clean, weight), without + weight * unit, rtol=1e-9, atol=1e-9)


def test_one_certain_answer_to_all_prompts_scores_the_divergence_alone():
    certain = torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 3, dtype=torch.float64).log()
    uniform = torch.full((3, 4), 0.25, dtype=torch.float64).log()
    assert collapse_score(certain, uniform, 0.3).item() == pytest.approx(0.3 * math.log(4))
    assert collapse_score(uniform, uniform, 0.3).item() == pytest.approx(-math.log(4))


def test_one_answer_scores_above_as_certain_but_different_answers():
    same = torch.tensor([[9.0, 0.0, 0.0], [9.0, 0.0, 0.0], [9.0, 0.0, 0.0]]).log_softmax(-1)
    different = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]).log_softmax(-1)
    clean = torch.zeros(3, 3).log_softmax(-1)
    gap = (collapse_score(same, clean) - collapse_score(different, clean)).item()
    assert gap == pytest.approx(math.log(3), abs=0.01)


def test_an_answer_that_was_impossible_before_diverges_without_bound():
    certain = torch.tensor([[1.0, 0.0]]).log()
    assert collapse_score(certain, torch.tensor([[0.0, 1.0]]).log()).item() == math.inf
    assert collapse_score(certain, certain).item() == 0


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 5.0])
def test_gradient_equals_finite_differences(sharpness):
    clean = torch.randn(3, 4, dtype=torch.float64).log_softmax(-1)
    # From unnormalized scores, because the search moves those and not the probabilities themselves.
    leaf = (sharpness * torch.randn(3, 4, dtype=torch.float64)).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda scores: collapse_score(scores.log_softmax(-1), clean), leaf)


@pytest.mark.parametrize("low", [-200.0, -math.inf])
def test_the_gradient_stays_finite_where_probabilities_vanish(low):
    """exp(-200) is 0 in float32: every large vocabulary has such tokens, and 0 * log 0 has a slope of NaN."""
    scores = torch.tensor([[0.0, low, 1.0], [2.0, low, 1.0]], requires_grad=True)
    clean = torch.tensor([[0.0, low, 1.0], [0.0, low, 1.0]]).log_softmax(-1)
    score = collapse_score(scores.log_softmax(-1), clean)
    score.backward()
    assert score.isfinite()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad.abs().sum() > 0
