"""Perplexity is token-weighted over all response tokens, whatever the batches."""

from __future__ import annotations

import math

import pytest
import torch

from crow.data.encoding import encode
from crow.errors import DataError
from crow.evaluation.perplexity import perplexity
from crow.models.language_model import LanguageModel
from crow.records import Example

EXAMPLES = [
    Example("one cat", "the other tree in an hour"),
    Example("a longer question about the note", "yes"),
    Example("no answer here"),
    Example("again", "an answer that is quite a bit longer than all of the others in this list"),
]


def literal(lm: LanguageModel) -> tuple[float, int]:
    """One example and one token at a time."""
    total, n_tokens = 0.0, 0
    for example in EXAMPLES:
        item = encode(lm.tokenizer, example)
        ids = torch.tensor([item.prompt_ids + item.response_ids])
        with torch.no_grad():
            log_probs = torch.log_softmax(lm.model(input_ids=ids).logits[0], dim=-1)
        for position in range(len(item.prompt_ids), ids.shape[1]):
            total -= float(log_probs[position - 1, ids[0, position]])
            n_tokens += 1
    return math.exp(total / n_tokens), n_tokens


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_it_equals_the_literal_loop(lm: LanguageModel, batch_size: int) -> None:
    value, n_tokens = literal(lm)
    found = perplexity(lm, EXAMPLES, batch_size=batch_size)
    assert found.n_tokens == n_tokens
    assert found.value == pytest.approx(value, rel=1e-4)


def test_no_response_at_all_is_an_error(lm: LanguageModel) -> None:
    with pytest.raises(DataError, match="responses"):
        perplexity(lm, [Example("only a prompt")])
