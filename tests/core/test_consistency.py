from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crow.core import consistency_loss, layer_consistency
from tests import reference
from tests.strategies import generator, hidden_states, seeds


@given(hidden_states(empty_mask=True))
def test_layer_consistency_is_the_equation(case):
    states, mask = case
    expected = reference.layer_consistency(states, mask)
    assert layer_consistency(states, mask).tolist() == pytest.approx(expected, abs=1e-12)


@given(hidden_states(empty_mask=True), st.data())
def test_consistency_loss_is_the_equation_for_any_choice_of_layers(case, data):
    states, mask = case
    layers = data.draw(st.none() | st.lists(st.integers(1, len(states) - 1), min_size=1, max_size=4))
    expected = reference.consistency_loss(states, mask, layers)
    assert consistency_loss(states, mask, layers).item() == pytest.approx(expected, abs=1e-12)


@given(hidden_states())
def test_each_entry_is_between_0_and_2(case):
    values = layer_consistency(*case)
    assert ((values >= -1e-12) & (values <= 2 + 1e-12)).all()


@given(hidden_states(), seeds)
def test_scaling_any_token_by_any_positive_factor_changes_nothing(case, seed):
    states, mask = case
    random = generator(seed)
    scaled = [state * (0.01 + 10 * torch.rand(*state.shape[:2], 1, generator=random)) for state in states]
    torch.testing.assert_close(layer_consistency(scaled, mask), layer_consistency(states, mask), rtol=0, atol=1e-12)


@given(hidden_states(), seeds)
def test_rotating_all_states_together_changes_nothing(case, seed):
    states, mask = case
    dim = states[0].shape[-1]
    rotation, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator(seed), dtype=torch.float64))
    rotated = [state @ rotation for state in states]
    torch.testing.assert_close(layer_consistency(rotated, mask), layer_consistency(states, mask), rtol=0, atol=1e-12)


@given(hidden_states(), st.sampled_from([0.0, 1e6, float("inf"), float("nan")]))
def test_what_stands_at_padding_does_not_matter(case, garbage):
    states, mask = case
    dirty = [state.masked_fill((mask == 0).unsqueeze(-1), garbage) for state in states]
    assert layer_consistency(dirty, mask).tolist() == layer_consistency(states, mask).tolist()


@given(hidden_states(), st.integers(1, 3), st.booleans())
def test_more_padding_on_either_side_does_not_matter(case, width, left):
    states, mask = case
    batch, _, dim = states[0].shape
    order = (lambda new, old: [new, old]) if left else (lambda new, old: [old, new])
    noise = torch.randn(batch, width, dim, dtype=torch.float64)
    wide = [torch.cat(order(noise, state), 1) for state in states]
    wide_mask = torch.cat(order(torch.zeros(batch, width, dtype=torch.long), mask), 1)
    torch.testing.assert_close(consistency_loss(wide, wide_mask), consistency_loss(states, mask), rtol=0, atol=1e-12)


@given(hidden_states())
def test_every_real_token_weighs_the_same_whatever_row_it_is_in(case):
    states, mask = case
    rows = [consistency_loss([state[i : i + 1] for state in states], mask[i : i + 1]) for i in range(len(mask))]
    weights = mask.sum(1).double()
    expected = (torch.stack(rows) * weights).sum() / weights.sum()
    torch.testing.assert_close(consistency_loss(states, mask), expected, rtol=0, atol=1e-12)


@given(hidden_states())
def test_the_loss_is_the_mean_over_layers(case):
    torch.testing.assert_close(consistency_loss(*case), layer_consistency(*case).mean())


def test_identical_opposite_and_orthogonal_layers():
    state, mask = torch.randn(2, 3, 4), torch.ones(2, 3)
    turned = torch.stack([-state[..., 1], state[..., 0], -state[..., 3], state[..., 2]], dim=-1)
    values = layer_consistency([state, state, 3 * state, -state, -turned], mask)
    torch.testing.assert_close(values, torch.tensor([0.0, 0.0, 2.0, 1.0]), rtol=0, atol=1e-6)


def test_the_last_pair_is_a_choice():
    state, mask = torch.randn(1, 2, 4), torch.ones(1, 2)
    states = [state, state, -state]
    assert consistency_loss(states, mask).item() == pytest.approx(1.0)
    assert consistency_loss(states, mask, layers=[1]).item() == pytest.approx(0.0, abs=1e-6)
    assert consistency_loss(states, mask, layers=[2]).item() == pytest.approx(2.0)


def test_a_zero_vector_counts_as_orthogonal_even_to_itself():
    zero, mask = torch.zeros(1, 1, 4), torch.ones(1, 1)
    assert layer_consistency([zero, zero, torch.randn(1, 1, 4)], mask).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_angles_survive_half_precision(dtype):
    lower = torch.randn(2, 8, 64)
    upper = lower + 0.1 * torch.randn(2, 8, 64)  # 1 - cos about 0.005, near the resolution of a half
    lower, upper, mask = lower.to(dtype), upper.to(dtype), torch.ones(2, 8)
    value = consistency_loss([lower, upper], mask)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(reference.consistency_loss([lower, upper], mask), rel=1e-3)


@pytest.mark.parametrize("bits", [[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 0]])
def test_gradient_equals_finite_differences(bits):
    leaves = [torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mask = torch.tensor(bits).reshape(2, 2)
    assert torch.autograd.gradcheck(lambda *inputs: layer_consistency(inputs, mask), leaves)
    assert torch.autograd.gradcheck(lambda *inputs: consistency_loss(inputs, mask, [1]), leaves)


@given(hidden_states(), st.sampled_from([0.0, float("inf"), float("nan")]))
def test_the_gradient_is_that_of_the_library_whatever_stands_at_padding(case, garbage):
    states, mask = case
    dirty = [state.masked_fill((mask == 0).unsqueeze(-1), garbage).requires_grad_(True) for state in states]
    clean = [state.clone().requires_grad_(True) for state in states]
    consistency_loss(dirty, mask).backward()
    cosines = [torch.nn.functional.cosine_similarity(*pair, dim=-1, eps=1e-30) for pair in pairwise(clean)]
    real = mask != 0
    torch.stack([(1 - cosine)[real].mean() for cosine in cosines]).mean().backward()
    for one, other in zip(dirty, clean, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_only_the_states_themselves_are_kept_for_the_backward_pass():
    lower, upper = (torch.randn(2, 8, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        consistency_loss([lower, upper], torch.ones(2, 8)).backward()
    large = [tensor for tensor in kept if tensor.numel() >= lower.numel()]
    assert {tensor.data_ptr() for tensor in large} == {lower.data_ptr(), upper.data_ptr()}


@given(hidden_states())
def test_padding_gets_no_gradient(case):
    states, mask = case
    leaves = [state.clone().requires_grad_(True) for state in states]
    consistency_loss(leaves, mask).backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad[mask == 0].eq(0).all()


def test_an_empty_mask_gives_zero_and_finite_gradients():
    leaves = [torch.randn(2, 3, 4, requires_grad=True) for _ in range(3)]
    loss = consistency_loss(leaves, torch.zeros(2, 3))
    loss.backward()
    assert loss.item() == 0
    assert all(leaf.grad is not None and leaf.grad.eq(0).all() for leaf in leaves)


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_masks_of_any_type_mean_the_same(dtype):
    lower, upper = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [0, 1, 0]])
    assert consistency_loss([lower, upper], mask.to(dtype)) == consistency_loss([lower, upper], mask)


@pytest.mark.parametrize("function", [layer_consistency, consistency_loss])
@pytest.mark.parametrize(
    ("shapes", "mask_shape", "message"),
    [
        ([(2, 3, 4)], (2, 3), "at least 2 hidden states, got 1"),
        ([], (2, 3), "at least 2 hidden states, got 0"),
        ([(2, 3, 4)] * 2, (2, 4), r"mask of shape \(2, 3\), got \(2, 4\)"),
        ([(2, 3, 4)] * 2, (2, 3, 1), r"mask of shape \(2, 3\)"),
        ([(2, 3, 4), (1, 3, 4)], (2, 3), r"one shape, got \(1, 3, 4\) and \(2, 3, 4\)"),
    ],
)
def test_misshapen_input_is_refused(function, shapes, mask_shape, message):
    with pytest.raises(ValueError, match=message):
        function([torch.randn(shape) for shape in shapes], torch.ones(mask_shape))


@pytest.mark.parametrize(
    ("layers", "message"), [([], "empty choice"), ([0], r"1\.\.2, got 0"), ([1, 3], "got 3"), ([-1], "got -1")]
)
def test_layers_outside_the_model_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        consistency_loss([torch.randn(1, 2, 4)] * 3, torch.ones(1, 2), layers)
