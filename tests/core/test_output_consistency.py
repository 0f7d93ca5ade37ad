from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from crow.core import coarse_log_probs, output_consistency_loss
from tests.strategies import generator, seeds


def distributions(seed: int, spread: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Two batches of log-probabilities (2, 3, 5) and a mask (2, 3) with at least one position."""
    random = generator(seed)
    one, other = (spread * torch.randn(2, 3, 5, generator=random, dtype=torch.float64) for _ in range(2))
    mask = torch.randint(0, 2, (2, 3), generator=random)
    mask[0, 0] = 1
    return one.log_softmax(-1), other.log_softmax(-1), mask


@given(seeds)
def test_it_is_the_equation(seed: int) -> None:
    clean, perturbed, mask = distributions(seed)
    terms = [
        sum(math.exp(p) * (p - q) for p, q in zip(clean[b, t].tolist(), perturbed[b, t].tolist(), strict=True))
        for b in range(2)
        for t in range(3)
        if mask[b, t]
    ]
    assert output_consistency_loss(clean, perturbed, mask).item() == pytest.approx(sum(terms) / len(terms), abs=1e-12)


@given(seeds, st.floats(0.5, 4))
def test_a_weight_counts_a_position_so_many_times(seed: int, weight: float) -> None:
    clean, perturbed, mask = distributions(seed)
    weights = mask.double()
    weights[0, 0] = weight
    single = torch.zeros_like(weights)
    single[0, 0] = 1
    rest = mask - single
    parts = weight * output_consistency_loss(clean, perturbed, single)
    parts = parts + rest.sum() * output_consistency_loss(clean, perturbed, rest)
    torch.testing.assert_close(output_consistency_loss(clean, perturbed, weights) * weights.sum(), parts)


@given(seeds, st.floats(0.1, 5))
def test_it_is_positive_unless_the_outputs_agree(seed: int, spread: float) -> None:
    clean, perturbed, mask = distributions(seed, spread)
    assert output_consistency_loss(clean, clean, mask).item() == pytest.approx(0, abs=1e-12)
    assert output_consistency_loss(clean, perturbed, mask) > 0


@given(seeds)
def test_positions_outside_the_mask_do_not_count_whatever_they_hold(seed: int) -> None:
    clean, perturbed, mask = distributions(seed)
    expected = output_consistency_loss(clean, perturbed, mask)
    perturbed = perturbed.masked_fill(mask[:, :, None] == 0, math.nan)
    assert torch.equal(output_consistency_loss(clean, perturbed, mask), expected)
    assert output_consistency_loss(clean, perturbed, torch.zeros_like(mask)) == 0


@given(seeds)
def test_its_gradient_at_the_logits_is_the_difference_of_the_probabilities(seed: int) -> None:
    clean, logits, mask = distributions(seed)
    logits.requires_grad_(True)
    output_consistency_loss(clean, logits.log_softmax(-1), mask).backward()
    expected = (logits.detach().softmax(-1) - clean.exp()) * mask[:, :, None] / mask.sum()
    torch.testing.assert_close(logits.grad, expected)


def test_a_token_of_probability_zero_adds_nothing() -> None:
    clean = torch.tensor([[[0.0, -math.inf]]])
    perturbed = torch.tensor([[[0.5, 0.5]]]).log().requires_grad_(True)
    loss = output_consistency_loss(clean, perturbed, torch.ones(1, 1))
    assert float(loss.detach()) == pytest.approx(math.log(2))
    loss.backward()
    assert torch.isfinite(perturbed.grad).all()  # type: ignore[arg-type]


@given(seeds, st.integers(1, 4))
def test_coarse_distributions_keep_the_named_tokens_and_the_rest_together(seed: int, kept: int) -> None:
    clean, perturbed, mask = distributions(seed)
    tokens = clean.topk(kept, dim=-1).indices
    coarse = coarse_log_probs(clean, tokens)
    torch.testing.assert_close(coarse[..., :-1], clean.gather(-1, tokens))
    torch.testing.assert_close(coarse.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64))
    whole = output_consistency_loss(clean, perturbed, mask)
    assert output_consistency_loss(coarse, coarse_log_probs(perturbed, tokens), mask) <= whole + 1e-12
    if kept == 4:  # one token is left for the rest: nothing is lost
        torch.testing.assert_close(output_consistency_loss(coarse, coarse_log_probs(perturbed, tokens), mask), whole)


@given(seeds)
def test_gradients_of_coarse_distributions_match_finite_differences(seed: int) -> None:
    logits, _, _ = distributions(seed)
    tokens = logits.topk(2, dim=-1).indices
    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: coarse_log_probs(x.log_softmax(-1), tokens), (logits,))
