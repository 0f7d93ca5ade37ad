from __future__ import annotations

import pytest
import torch
from tests.pico import FAMILIES, LAYERS, pico_language_model

from crow.analysis.curves import consistency_curve, mean_curve, prompt_curves
from crow.data.encoding import encode
from crow.models.hidden_states import capture_hidden_states
from crow.models.language_model import LanguageModel
from crow.records import Example

EXAMPLES = [Example("Hi"), Example("What is the capital of the north?"), Example("1 + 1"), Example("a b c d e f")]


def literal(lm: LanguageModel, examples: list[Example]) -> list[float]:
    """`1 - cos` of every token of every prompt, one prompt at a time, averaged over all of them."""
    angles: list[list[float]] = [[] for _ in range(LAYERS)]
    for example in examples:
        ids = torch.tensor([encode(lm.tokenizer, Example(example.prompt)).prompt_ids])
        with torch.no_grad(), capture_hidden_states(lm.model) as captured:
            lm.model(input_ids=ids)
        for layer in range(LAYERS):
            for lower, upper in zip(captured.states[layer][0], captured.states[layer + 1][0], strict=True):
                angles[layer].append(1 - float(lower @ upper / lower.norm() / upper.norm()))
    return [sum(column) / len(column) for column in angles]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_mean_over_all_prompt_tokens_whatever_the_batch_size(family: str) -> None:
    lm = pico_language_model(family)
    expected = literal(lm, EXAMPLES)
    for batch_size in (1, 3, 16):
        curves = prompt_curves(lm, EXAMPLES, batch_size)
        assert mean_curve(curves) == pytest.approx(expected, rel=1e-3, abs=1e-5)
        for example, (curve, n_tokens) in zip(EXAMPLES, curves, strict=True):
            assert curve == pytest.approx(literal(lm, [example]), rel=1e-3, abs=1e-5)
            assert n_tokens == len(encode(lm.tokenizer, example).prompt_ids)


def test_responses_do_not_count(lm: LanguageModel) -> None:
    answered = [Example(example.prompt, "some long answer in the hour") for example in EXAMPLES]
    assert consistency_curve(lm, answered) == consistency_curve(lm, EXAMPLES)


def test_no_examples_give_no_curve(lm: LanguageModel) -> None:
    assert consistency_curve(lm, []) == []


def test_the_model_can_be_trained_afterwards() -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    lm = pico_language_model("llama", max_position_embeddings=16, rope_parameters=scaling)
    consistency_curve(lm, EXAMPLES)
    input_ids = torch.randint(4, 200, (1, 24))
    lm.model(input_ids=input_ids, labels=input_ids).loss.backward()
    assert any(parameter.grad is not None for parameter in lm.model.parameters())
