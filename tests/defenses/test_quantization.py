from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.pico import FAMILIES, pico_language_model

from crow.defenses.base import Surroundings
from crow.defenses.quantization import GROUP, Quantization, round_to_nearest
from crow.models.architecture import find_layers
from crow.models.linear import matrices


@given(
    seed=st.integers(0, 1000),
    width=st.integers(1, 150),
    scheme=st.sampled_from([(8, None), (4, GROUP), (4, 16), (2, 16)]),
)
def test_no_weight_moves_more_than_half_a_level(seed: int, width: int, scheme: tuple[int, int | None]) -> None:
    bits, group = scheme
    weight = torch.randn(3, width, generator=torch.Generator().manual_seed(seed))
    rounded = round_to_nearest(weight, bits, group)
    for old, new in zip(weight.split(group or width, dim=-1), rounded.split(group or width, dim=-1), strict=True):
        spread = old.amax(dim=-1) - old.amin(dim=-1) if group else 2 * old.abs().amax(dim=-1)
        levels = 2**bits - 1 if group else 2**bits - 2
        assert ((old - new).abs().amax(dim=-1) <= spread / levels / 2 + 1e-6).all()
        assert all(len(row.unique()) <= 2**bits for row in new)
    torch.testing.assert_close(round_to_nearest(rounded, bits, group), rounded, atol=1e-5, rtol=1e-5)


def test_zeros_and_equal_weights_stay_what_they_are() -> None:
    for bits, group in ((8, None), (4, 4)):
        assert torch.equal(round_to_nearest(torch.zeros(2, 8), bits, group), torch.zeros(2, 8))
        torch.testing.assert_close(round_to_nearest(torch.full((2, 8), 0.3), bits, group), torch.full((2, 8), 0.3))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_matrix_of_every_family_is_rounded_and_more_so_in_fewer_bits(family: str) -> None:
    moved = {}
    for bits in (8, 4):
        lm, whole = pico_language_model(family), pico_language_model(family)
        Quantization(Surroundings(Path("unused")), bits).apply(lm, [])
        pairs = [
            (new.weight, old.weight)
            for layers in zip(find_layers(lm.model), find_layers(whole.model), strict=True)
            for new, old in zip(*map(matrices, layers), strict=True)
        ]
        assert all(not torch.equal(new, old) for new, old in pairs)
        moved[bits] = sum(float((new - old).norm()) for new, old in pairs)
    assert moved[8] < moved[4] / 5
