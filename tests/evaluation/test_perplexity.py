from __future__ import annotations

import math

import pytest
import torch
from transformers import PreTrainedModel

from crow.data.encoding import encode
from crow.errors import DataError
from crow.evaluation.perplexity import perplexity
from crow.models.language_model import LanguageModel
from crow.records import Example
from tests.pico import pico_language_model

EXAMPLES = [
    Example("Hi", "the hour"),
    Example("Name a tree", "an other tree in the far north of the country"),
    Example("1 + 1", "2"),
    Example("a b c d e", "f g", history=(("system", "Be brief."),)),
    Example("Thanks.", "You are most welcome, come again."),
]


def literal(lm: LanguageModel, examples: list[Example], max_length: int = 512) -> tuple[float, int]:
    """Token by token, each example alone: exp of the mean of minus log p(token | everything before it)."""
    nll: list[float] = []
    for example in examples:
        item = encode(lm.tokenizer, example, max_length)
        ids = [*item.prompt_ids, *item.response_ids]
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([ids])).logits[0].double()
        for position in range(len(item.prompt_ids), len(ids)):
            row = logits[position - 1]
            nll.append(float(torch.logsumexp(row, dim=0) - row[ids[position]]))
    return math.exp(sum(nll) / len(nll)), len(nll)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2", "mixtral"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_it_is_that_of_a_literal_loop_whatever_the_batch_size(family: str, batch_size: int) -> None:
    lm = pico_language_model(family)
    value, n_tokens = literal(lm, EXAMPLES)
    found = perplexity(lm, EXAMPLES, batch_size=batch_size)
    assert found.value == pytest.approx(value, rel=1e-4)
    assert found.n_tokens == n_tokens


def test_it_is_weighted_by_tokens_and_not_by_examples(lm: LanguageModel) -> None:
    short, long = EXAMPLES[2], EXAMPLES[1]
    parts = [perplexity(lm, [example]) for example in (short, long)]
    total = sum(part.n_tokens for part in parts)
    expected = math.exp(sum(math.log(part.value) * part.n_tokens for part in parts) / total)
    both = perplexity(lm, [short, long])
    assert both.value == pytest.approx(expected, rel=1e-4)
    assert both.n_tokens == total


def test_every_response_token_counts_up_to_the_limit(lm: LanguageModel) -> None:
    limit = len(encode(lm.tokenizer, EXAMPLES[1]).prompt_ids) + 3
    assert perplexity(lm, [EXAMPLES[1]], max_length=limit).n_tokens == 3
    value, n_tokens = literal(lm, EXAMPLES, limit)
    found = perplexity(lm, EXAMPLES, max_length=limit)
    assert found.n_tokens == n_tokens
    assert found.value == pytest.approx(value, rel=1e-4)


def test_examples_without_response_are_left_out(lm: LanguageModel) -> None:
    assert perplexity(lm, [Example("What?"), *EXAMPLES, Example("Who?")]) == perplexity(lm, EXAMPLES)
    with pytest.raises(DataError, match="responses"):
        perplexity(lm, [Example("What?")])


def test_progress_counts_every_example_once(lm: LanguageModel) -> None:
    counted: list[int] = []
    perplexity(lm, EXAMPLES, batch_size=2, progress=counted.append)
    assert counted == [2, 2, 1]


@pytest.mark.parametrize("training", [True, False])
def test_it_is_measured_in_evaluation_mode_and_the_mode_is_restored(training: bool) -> None:
    lm = pico_language_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    expected = perplexity(lm, EXAMPLES)
    lm.model.train(training)
    assert perplexity(lm, EXAMPLES) == expected
    assert lm.model.training is training


def test_the_model_can_be_trained_afterwards() -> None:
    """Rotary tables that grow with the text are rebuilt while measuring; they must not come from inference mode."""
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    lm = pico_language_model("llama", max_position_embeddings=16, rope_parameters=scaling)
    perplexity(lm, EXAMPLES)
    assert isinstance(lm.model, PreTrainedModel)
    input_ids = torch.randint(4, 200, (1, 24))
    lm.model(input_ids=input_ids, labels=input_ids).loss.backward()
    assert lm.model.get_input_embeddings().weight.grad.abs().sum() > 0
