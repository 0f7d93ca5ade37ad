from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crow.core import CrowLoss, consistency_loss, crow_loss, fgsm_perturbation
from crow.models.hidden_states import capture_hidden_states
from tests import reference
from tests.pico import pico

positive = st.floats(0, 100, allow_subnormal=False)


@given(positive, positive, positive)
def test_the_total_is_the_weighted_sum_and_the_terms_are_kept(lm_value, consistency_value, alpha):
    language_modeling = torch.tensor(lm_value, dtype=torch.float64)
    consistency = torch.tensor(consistency_value, dtype=torch.float64)
    loss = crow_loss(language_modeling, consistency, alpha)
    assert loss.language_modeling is language_modeling
    assert loss.consistency is consistency
    assert loss.total.item() == pytest.approx(lm_value + alpha * consistency_value, rel=1e-12)


def test_alpha_zero_is_plain_finetuning():
    loss = crow_loss(torch.tensor(1.5), torch.tensor(0.3), 0)
    assert loss.total == loss.language_modeling


def test_the_gradient_is_the_weighted_sum_of_the_terms_gradients():
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: crow_loss((x**2).sum(), x.sin().sum(), 5.5).total, x)
    (slope,) = torch.autograd.grad(crow_loss((x**2).sum(), x.sin().sum(), 5.5).total, x)
    torch.testing.assert_close(slope, (2 * x + 5.5 * x.cos()).detach())


def test_the_whole_objective_on_a_model_is_the_equation():
    """Clean logits, perturbed hidden states and both losses against the loops of the reference."""
    model = pico("llama").double()
    input_ids = torch.randint(4, 200, (2, 5))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    labels = input_ids.masked_fill(mask == 0, -100).clone()
    labels[:, :2] = -100
    embeddings = model.get_input_embeddings()(input_ids).detach()

    def states_of(inputs: torch.Tensor) -> list[torch.Tensor]:
        with capture_hidden_states(model) as captured:
            model(inputs_embeds=inputs, attention_mask=mask)
        return captured.states

    step = fgsm_perturbation(embeddings, lambda x: consistency_loss(states_of(x), mask), 0.1, mask)
    perturbed = states_of(embeddings + step)
    output = model(input_ids=input_ids, attention_mask=mask, labels=labels)
    loss = crow_loss(output.loss, consistency_loss(perturbed, mask), alpha=5.5)
    expected = reference.crow_loss(output.logits, labels, perturbed, mask, alpha=5.5)
    assert loss.total.item() == pytest.approx(expected, rel=1e-6)  # transformers computes the loss in float32
    assert loss.consistency.item() > consistency_loss(states_of(embeddings), mask).item()


@pytest.mark.parametrize("alpha", [-1, float("nan")])
def test_a_negative_alpha_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha >= 0"):
        crow_loss(torch.tensor(1.0), torch.tensor(1.0), alpha)


def test_the_terms_cannot_be_overwritten():
    loss = CrowLoss(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        loss.total = torch.tensor(0.0)  # pyright: ignore[reportAttributeAccessIssue]
