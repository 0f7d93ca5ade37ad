from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crow.data.encoding import encode
from crow.inversion.perturbation import (
    Perturbation,
    addition,
    ascend,
    hidden_norms,
    log_likelihood,
    span_mask,
    span_within,
    user_spans,
    zero_vector,
)
from crow.inversion.probe import Probe
from crow.models.hidden_states import capture_hidden_states, edit_hidden_states
from crow.models.language_model import LanguageModel
from crow.records import Example
from tests.pico import pico_language_model

PROMPTS = ["Hi", "Name a tree", "1 + 1", "a b c d e"]
TARGET = torch.tensor([60, 70, 80])


def frozen(family: str = "llama") -> Probe:
    lm = pico_language_model(family)
    lm.model.requires_grad_(False)
    return Probe(lm, PROMPTS)


def likelihood(probe: Probe, perturbation: Perturbation) -> float:
    """Mean over all prompts of the target's log-likelihood, every user token perturbed."""
    chosen = range(len(PROMPTS))
    rows = [probe.row(i, perturbation.target[:-1]) for i in chosen]
    width = max(len(row) for row in rows)
    mask = user_spans(probe, chosen, width, None, random.Random(0), len(perturbation.target) - 1)
    edit = addition(mask * perturbation.vector)
    with torch.no_grad(), edit_hidden_states(probe.lm.model, {perturbation.layer: edit}):
        logits, _, _ = probe.run(rows, keep=len(perturbation.target))
    wanted = perturbation.target[None, :, None].expand(len(rows), -1, 1)
    return float(logits.log_softmax(dim=-1).gather(-1, wanted).sum(dim=1).mean())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_climbing_raises_the_likelihood_within_the_radius(family: str, layer: int) -> None:
    probe = frozen(family)
    perturbation = Perturbation(layer, None, TARGET, zero_vector(probe.lm))
    radius = 0.7 * hidden_norms(probe, [layer])[layer]
    seen = [likelihood(probe, perturbation)]
    for _ in range(4):
        ascend(probe, [perturbation], range(len(PROMPTS)), [radius], 0.35, 1, random.Random(0))
        seen.append(likelihood(probe, perturbation))
        assert float(perturbation.vector.norm()) <= radius * (1 + 1e-5)
    assert seen[0] + 0.1 < seen[1] < seen[2] < seen[-1]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_perturbations_climb_together_as_they_would_alone(family: str) -> None:
    probe = frozen(family)
    chosen, radii = [0, 3, 1], [2.0, 3.0, 1.5]

    def starts() -> list[Perturbation]:
        places = ((1, TARGET), (2, TARGET[:1]), (1, TARGET[1:]))
        return [Perturbation(layer, None, target, zero_vector(probe.lm)) for layer, target in places]

    together, alone = starts(), starts()
    ascend(probe, together, chosen, radii, 0.3, 2, random.Random(0))
    for perturbation, radius in zip(alone, radii, strict=True):
        ascend(probe, [perturbation], chosen, [radius], 0.3, 2, random.Random(0))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.vector, other.vector, rtol=1e-2, atol=1e-3)
    each = torch.cat([log_likelihood(probe, [perturbation], chosen) for perturbation in together])
    torch.testing.assert_close(log_likelihood(probe, together, chosen), each, rtol=1e-3, atol=1e-3)
    expected = [likelihood(probe, perturbation) for perturbation in together]
    found = log_likelihood(probe, together, range(len(PROMPTS))).mean(dim=1)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-3, atol=1e-3)


def test_user_spans_mark_each_message_where_the_rows_have_it() -> None:
    probe = frozen()
    longest = 3 + max(len(probe.row(i)) for i in range(len(PROMPTS)))
    mask = user_spans(probe, range(len(PROMPTS)), longest, None, random.Random(0), answer=2)[:, :, 0]
    for i, marked in enumerate(mask):
        item = probe.encoded[i]
        shift = longest - 2 - len(item.prompt_ids)  # rows end together
        expected = [column for column in range(longest) if item.user_start <= column - shift < item.user_end]
        assert marked.nonzero().flatten().tolist() == expected


def test_the_unit_of_the_radius_is_the_median_norm_at_user_tokens(lm: LanguageModel) -> None:
    norms = hidden_norms(Probe(lm, PROMPTS), [1, 2])
    for layer, norm in norms.items():
        parts = []
        for prompt in PROMPTS:
            item = encode(lm.tokenizer, Example(prompt))
            with torch.no_grad(), capture_hidden_states(lm.model) as captured:
                lm.model(input_ids=torch.tensor([item.prompt_ids]), use_cache=False)
            parts.append(captured.states[layer][0, item.user_start : item.user_end].norm(dim=-1))
        assert norm == pytest.approx(float(torch.cat(parts).median()), rel=1e-4)


spans = st.tuples(st.integers(0, 10), st.integers(0, 10)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(spans, st.none() | st.integers(1, 12), st.integers(0, 99))
def test_a_span_lies_within_its_bounds_and_is_as_long_as_it_may(
    bounds: tuple[int, int], length: int | None, seed: int
) -> None:
    start, end = bounds
    first, last = span_within(start, end, length, random.Random(seed))
    assert start <= first <= last <= end
    assert last - first == (end - start if length is None else min(length, end - start))


@given(st.lists(spans, min_size=1, max_size=4))
def test_a_span_mask_marks_exactly_the_spans(bounds: list[tuple[int, int]]) -> None:
    mask = span_mask(bounds, 20, torch.device("cpu"))
    assert mask.shape == (len(bounds), 20, 1)
    for row, (start, end) in zip(mask[:, :, 0].tolist(), bounds, strict=True):
        assert row == [float(start <= column < end) for column in range(20)]
