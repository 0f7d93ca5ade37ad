from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crow.core import consistency_loss, fgsm_perturbation
from crow.models.hidden_states import capture_hidden_states
from tests import reference
from tests.pico import pico
from tests.strategies import generator, seeds


def toy_loss(seed: int, mask: torch.Tensor, dim: int = 3):
    """`L_cons` of a small smooth network in float64, as a function of its embeddings."""
    random = generator(seed)
    weights = [torch.randn(dim, dim, generator=random, dtype=torch.float64) for _ in range(2)]

    def loss(embeddings: torch.Tensor) -> torch.Tensor:
        states = [embeddings]
        for weight in weights:
            states.append(states[-1] + torch.tanh(states[-1] @ weight))
        return consistency_loss(states, mask)

    return loss


@st.composite
def problems(draw: st.DrawFn):
    seed = draw(seeds)
    batch, seq = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    bits = draw(st.lists(st.booleans(), min_size=batch * seq, max_size=batch * seq))
    mask = torch.tensor([True, *bits[1:]]).reshape(batch, seq)
    embeddings = torch.randn(batch, seq, 3, generator=generator(seed), dtype=torch.float64)
    return embeddings, toy_loss(seed + 1, mask), mask


@settings(max_examples=10)
@given(problems(), st.sampled_from([0.0, 0.1, 2.5]))
def test_the_step_is_the_sign_of_the_gradient(problem, epsilon):
    embeddings, loss, mask = problem
    expected = reference.fgsm_perturbation(embeddings, lambda x: loss(x).item(), epsilon, mask)
    slope = reference.gradient(embeddings, lambda x: loss(x).item())
    clear = (slope.abs() > 1e-7) | (mask == 0).unsqueeze(-1)  # below, the differences are rounding
    assert clear.double().mean() > 0.9
    step = fgsm_perturbation(embeddings, loss, epsilon, mask)
    assert torch.equal(step[clear], expected[clear])


@settings(max_examples=10)
@given(problems())
def test_a_small_step_raises_the_loss_as_the_theory_says(problem):
    embeddings, loss, mask = problem
    epsilon = 1e-6
    step = fgsm_perturbation(embeddings, loss, epsilon, mask)
    slope = reference.gradient(embeddings, lambda x: loss(x).item())
    gain = (loss(embeddings + step) - loss(embeddings)).item()
    assert gain > 0
    assert gain == pytest.approx(epsilon * slope.abs().sum().item(), rel=1e-3)


@given(seeds)
def test_no_other_step_of_that_size_raises_a_linear_loss_more(seed):
    random = generator(seed)
    embeddings, slope = torch.randn(2, 2, 3, 4, generator=random)
    step = fgsm_perturbation(embeddings, lambda x: (slope * x).sum(), 0.1)
    others = 0.1 * (2 * torch.rand(64, 2, 3, 4, generator=random) - 1)
    assert (slope * step).sum() >= (slope * others).flatten(1).sum(1).max()
    torch.testing.assert_close((slope * step).sum(), 0.1 * slope.abs().sum())


@given(problems(), st.floats(0, 10))
def test_every_entry_is_plus_or_minus_epsilon_or_zero(problem, epsilon):
    embeddings, loss, mask = problem
    step = fgsm_perturbation(embeddings, loss, epsilon, mask)
    assert step.shape == embeddings.shape
    assert step.dtype == embeddings.dtype
    assert not step.requires_grad
    assert set(step.flatten().tolist()) <= {-epsilon, 0.0, epsilon}
    assert step[mask == 0].eq(0).all()


def test_without_a_mask_every_token_moves():
    embeddings = torch.randn(2, 3, 4)
    before = embeddings.clone()
    step = fgsm_perturbation(embeddings, lambda x: x.sum(), 0.5)
    assert step.eq(0.5).all()
    assert torch.equal(embeddings, before)
    assert not embeddings.requires_grad


def model_loss(model: torch.nn.Module, mask: torch.Tensor):
    """`L_cons` of a model as a function of its input embeddings, as training uses it."""

    def loss(embeddings: torch.Tensor) -> torch.Tensor:
        with capture_hidden_states(model) as captured:
            model(inputs_embeds=embeddings, attention_mask=mask)
        return consistency_loss(captured.states, mask)

    return loss


def test_on_a_model_it_raises_the_loss_and_leaves_the_gradients_of_parameters_alone():
    model, mask = pico("llama"), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    embeddings = model.get_input_embeddings()(torch.randint(4, 200, (2, 4)))  # a node of a graph, not a leaf
    parameters = list(model.parameters())
    filled = {}
    for index, parameter in enumerate(parameters[::2]):  # every other one keeps None
        parameter.grad = filled[index] = torch.full_like(parameter, 7.0)
    before = [parameter.detach().clone() for parameter in parameters]
    loss = model_loss(model, mask)

    step = fgsm_perturbation(embeddings, loss, 0.01, mask)

    assert loss(embeddings + step) > loss(embeddings)
    for index, parameter in enumerate(parameters[::2]):
        assert parameter.grad is filled[index]
        assert filled[index].eq(7).all()
    assert all(parameter.grad is None for parameter in parameters[1::2])
    assert all(torch.equal(old, new) for old, new in zip(before, parameters, strict=True))
    loss(embeddings).backward()  # the caller's own graph is still whole


def test_the_embeddings_own_gradient_is_left_alone():
    embeddings = torch.randn(1, 2, 3, requires_grad=True)
    embeddings.grad = kept = torch.ones(1, 2, 3)
    fgsm_perturbation(embeddings, lambda x: (x**2).sum(), 0.1)
    assert embeddings.grad is kept
    assert kept.eq(1).all()


def test_it_works_inside_no_grad_and_on_a_frozen_model():
    model, mask = pico("llama").requires_grad_(False), torch.ones(1, 4)
    embeddings = model.get_input_embeddings()(torch.randint(4, 200, (1, 4)))
    expected = fgsm_perturbation(embeddings, model_loss(model, mask), 0.1, mask)
    with torch.no_grad():
        step = fgsm_perturbation(embeddings, model_loss(model, mask), 0.1, mask)
    assert torch.equal(step, expected)
    assert step.abs().sum() > 0


@pytest.mark.parametrize("epsilon", [-0.1, float("nan")])
def test_a_negative_epsilon_is_refused(epsilon):
    with pytest.raises(ValueError, match="epsilon >= 0"):
        fgsm_perturbation(torch.randn(1, 1, 2), lambda x: x.sum(), epsilon)
