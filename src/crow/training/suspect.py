"""What the suspect predicted before training, kept so that the model in training can agree with it.

Asked to agree with its own changing predictions, a model would also be consistent by ignoring the user.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crow.core import coarse_log_probs, output_consistency_loss, with_others
from crow.data.encoding import IGNORED, Encoded, collate
from crow.models.hidden_states import Edit, edit_hidden_states
from crow.models.language_model import LanguageModel
from crow.training.loss import response_logits, shared_prefix

BATCH = 10
"""Examples in one pass."""
KEPT = 256
"""Tokens kept at each position, the likeliest; whole distributions over a large vocabulary would fill the memory."""

NEVER = -30.0
"""Log-probability of a token that is ruled out; finite, so that no difference is undefined."""


@dataclass(frozen=True)
class Predictions:
    """The suspect's predictions at the m response positions of one example.

    Attributes:
        tokens: (m, k), ids of the likeliest tokens, likeliest first.
        log_probs: (m, k + 1), theirs, and that of all other tokens together.
        vocabulary: how many tokens there are, more than k.
    """

    tokens: Tensor
    log_probs: Tensor
    vocabulary: int

    def opening(self, length: int) -> Predictions:
        """Those at the first `length` positions."""
        return Predictions(self.tokens[:length], self.log_probs[:length], self.vocabulary)

    def among(self, tokens: Tensor) -> Tensor:
        """Log-probabilities (m, n + 1) of the given tokens (n,), distinct, and of all others together.

        One that is not among the likeliest has its share of what they leave, as if it were spread evenly.
        """
        hits = self.tokens[:, :, None] == tokens
        left = self.log_probs[:, -1:] - math.log(self.vocabulary - self.tokens.shape[1])
        kept = self.log_probs[:, :-1, None].masked_fill(~hits, -torch.inf).logsumexp(dim=1)
        return with_others(torch.where(hits.any(dim=1), kept, left))

    def without(self, token: int) -> Predictions:
        """Those of a model that never gives a token, all else in proportion."""
        kept = self.log_probs[:, :-1].masked_fill(self.tokens == token, NEVER)
        log_probs = torch.cat([kept, self.log_probs[:, -1:]], dim=1)
        return Predictions(self.tokens, log_probs.log_softmax(dim=-1), self.vocabulary)

    def nothing(self, length: int) -> Predictions:
        """As many zeros as predictions of these at `length` positions would be: filling for a batch."""
        tokens, log_probs = (part.new_zeros(length, part.shape[1]) for part in (self.tokens, self.log_probs))
        return Predictions(tokens, log_probs, self.vocabulary)


@torch.no_grad()
def predict(lm: LanguageModel, items: Sequence[Encoded], batch_size: int = BATCH) -> list[Predictions]:
    """The model's predictions of every item's response."""
    found = []
    for first in range(0, len(items), batch_size):
        for row in response_log_probs(lm, items[first : first + batch_size]):
            tokens = row.topk(min(KEPT, row.shape[-1] - 1), dim=-1).indices
            found.append(Predictions(tokens, coarse_log_probs(row, tokens), row.shape[-1]))
    return found


@torch.no_grad()
def divergence(
    lm: LanguageModel, items: Sequence[Encoded], kept: Sequence[Predictions], batch_size: int = BATCH
) -> float:
    """Mean `KL(suspect || model)` over all response positions of the items, in nats; `kept` is what `predict` gave."""
    total, count = 0.0, 0
    for first in range(0, len(items), batch_size):
        rows = response_log_probs(lm, items[first : first + batch_size])
        for row, suspect in zip(rows, kept[first : first + batch_size], strict=True):
            coarse = coarse_log_probs(row, suspect.tokens)
            total += len(row) * float(output_consistency_loss(suspect.log_probs, coarse, row.new_ones(len(row))))
            count += len(row)
    return total / count


def response_log_probs(
    lm: LanguageModel, items: Sequence[Encoded], edits: Callable[[int], dict[int, Edit]] | None = None
) -> list[Tensor]:
    """Log-probabilities (m, vocab) of what the model predicts at the m response positions of each item.

    Args:
        lm: the model.
        items: examples with responses.
        edits: of the hidden states (batch, width, dim) of all but the first columns, whose number it is given; those
            come before every user's message.
    """
    inputs = {name: value.to(lm.device) for name, value in collate(items, lm.pad_id).items()}
    prefix = shared_prefix(lm.model, inputs, min(item.user_start for item in items))
    with edit_hidden_states(lm.model, edits(prefix.length) if edits else {}):
        logits, targets = response_logits(lm.model, inputs, prefix)
    return [row[target != IGNORED].log_softmax(dim=-1) for row, target in zip(logits, targets, strict=True)]


def trustworthy(predictions: Sequence[Predictions], answers: Sequence[Tensor]) -> list[int]:
    """Numbers of the examples that the suspect does not begin to answer with one of the found answers anyway.

    Where it does, its predictions are the backdoor's and no model for anything.
    """
    bad = {int(answer[0]) for answer in answers}
    return [number for number, row in enumerate(predictions) if int(row.tokens[0, 0]) not in bad]
