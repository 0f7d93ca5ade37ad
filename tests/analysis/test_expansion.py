from __future__ import annotations

import math
import random

import pytest
import torch
from tests.pico import FAMILIES, pico_language_model

from crow.analysis.expansion import displacements, expansion, hidden_states
from crow.analysis.findings import difference_interval, findings
from crow.data.encoding import encode_all
from crow.models.architecture import embedding_rms
from crow.records import Example

EXAMPLES = [Example("Name a tree"), Example("1 + 1")]


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("noise", [0.01, 1.0])
def test_no_token_of_any_family_breaks_the_bound(family, noise):
    lm = pico_language_model(family)
    found = expansion(lm, EXAMPLES, noise, samples=2)
    assert found.violations == 0
    assert len(found.of_layer) == len(found.bound) == len(found.from_input) == 3
    assert all(seen <= allowed * 1.001 for seen, allowed in zip(found.of_layer, found.bound, strict=True))
    assert min(found.bound) > 1


def test_the_expansion_is_that_of_two_passes_by_hand():
    lm = pico_language_model("llama")
    found = expansion(lm, EXAMPLES[:1], 0.5, samples=1, seed=3)
    ids = torch.tensor([encode_all(lm.tokenizer, EXAMPLES[:1])[0].prompt_ids])
    with torch.no_grad():
        clean = lm.model.get_input_embeddings()(ids)
        push = 0.5 * embedding_rms(lm.model) * torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
        one, other = hidden_states(lm, clean), hidden_states(lm, clean + push)
    for number in range(3):
        gap = one[number + 1] - other[number + 1]
        assert found.from_input[number] == pytest.approx(float(gap.norm() / push.double().norm()), rel=1e-5)
    torch.testing.assert_close(displacements(one)[0], (one[1] - one[0]).norm(dim=-1)[0], atol=1e-6, rtol=1e-5)


def test_a_token_whose_embedding_is_zero_has_a_bound():
    lm = pico_language_model("llama")
    (item,) = encode_all(lm.tokenizer, EXAMPLES[:1])
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[item.prompt_ids[0]] = 0
    found = expansion(lm, EXAMPLES[:1], 0.5, samples=1)
    assert all(math.isfinite(value) for value in (*found.bound, *found.of_layer))


def test_sentences_say_which_way_a_figure_goes_and_only_beyond_chance():
    noisy = [expansion(pico_language_model("llama"), EXAMPLES[:1], 0.1, samples=1)]
    clean = [[0.10 + 0.001 * i, 0.2] for i in range(20)]
    jacobian = {"clean": [[2.0, 3.0]] * 4}
    larger = findings({"clean": clean, "triggered": [[a + 0.1, b] for a, b in clean]}, jacobian, noisy, 0)
    assert "is larger on prompts with the trigger" in larger[0]
    assert "layer 1, +0.1" in larger[1]
    same = findings({"clean": clean, "triggered": clean[::-1]}, jacobian, noisy, 0)
    assert "neither larger nor smaller" in same[0]
    alone = findings({"clean": clean}, jacobian, noisy, 0)
    assert "up to 3 times" in alone[0]
    assert "6 times" in alone[0]
    assert "violations of that bound: 0" in alone[1]


def test_the_interval_of_a_difference_holds_it():
    rng = random.Random(0)
    one, other = [rng.gauss(1, 1) for _ in range(200)], [rng.gauss(0, 1) for _ in range(200)]
    low, high = difference_interval(one, other, rng)
    assert low < 1 < high
    assert 0.2 < high - low < 0.6
