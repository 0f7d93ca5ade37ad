"""Perplexity of the reference responses: `exp(sum of nll / number of tokens)` over all response tokens.

Token-weighted over the whole file, under the chat template, end-of-turn token included. It equals
`exp` of the evaluation loss of a trainer whose labels are the response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from crow.data.encoding import IGNORED, collate, encode_all, length_batches
from crow.errors import DataError
from crow.models.generation import Progress
from crow.models.language_model import LanguageModel
from crow.records import Example, Perplexity
from crow.training.loss import response_loss


@torch.no_grad()
def perplexity(
    lm: LanguageModel,
    examples: Sequence[Example],
    max_length: int = 512,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Perplexity:
    """Perplexity of the examples' responses given their prompts.

    Args:
        lm: the model.
        examples: those without a response are left out.
        max_length: prompt and response are cut to this many tokens.
        batch_size: examples at a time; does not change the result beyond rounding.
        progress: called with the number of examples finished after each batch.

    Raises:
        DataError: if no example has a response.
    """
    encoded = [e for e in encode_all(lm.tokenizer, examples, max_length) if e.response_ids]
    if not encoded:
        raise DataError("expected examples with responses to measure perplexity on, got none")
    was_training = lm.model.training
    lm.model.eval()
    total, n_tokens = 0.0, 0
    for rows in length_batches([len(item) for item in encoded], batch_size):
        batch = collate([encoded[i] for i in rows], lm.pad_id)
        batch = {key: value.to(lm.device) for key, value in batch.items()}
        total += float(response_loss(lm.model, batch, n_tokens=1))
        n_tokens += int((batch["labels"] != IGNORED).sum())
        if progress:
            progress(len(rows))
    lm.model.train(was_training)
    return Perplexity(math.exp(min(total / n_tokens, 700.0)), n_tokens)
