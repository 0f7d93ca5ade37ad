"""Answers of a batch, written in segments: rows that have ended leave the batch between them.

Most answers are short and a few are not; without this, all rows of a batch are computed until its last one ends, each
against a cache as long as the longest answer might be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, StoppingCriteria, StoppingCriteriaList

from crow.models.language_model import LanguageModel
from crow.models.prefix import states, whole_cache

FIRST_SEGMENT = 16
"""Tokens of the first segment; each further one is twice as long."""
Decided = Callable[[str, int], bool]
"""From an answer so far and the number of tokens that it may still have."""


class Ended(StoppingCriteria):
    """Ends a row once it is decided, and remembers which rows have ended, be it by themselves.

    Attributes:
        rows: (batch,) boolean: which have. `generate` lets no row resume.
    """

    rows: Tensor

    def __init__(self, lm: LanguageModel, start: int, end: int, stops: Sequence[int], decided: Decided | None) -> None:
        """Watch a batch.

        Args:
            lm: the model.
            start: columns of the prompts.
            end: columns that prompts and answers have at most.
            stops: token ids that end an answer.
            decided: an answer ends early once this holds.
        """
        self.lm, self.start, self.end, self.decided = lm, start, end, decided
        self.stops = torch.tensor(stops, device=lm.device)
        self.rows = torch.zeros(())

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:  # type: ignore[override]
        """(batch,) boolean: which rows end here."""
        ended = torch.isin(input_ids[:, -1], self.stops)
        if self.decided:
            texts = self.lm.tokenizer.batch_decode(input_ids[:, self.start :], skip_special_tokens=True)
            left = self.end - input_ids.shape[1]
            ended |= torch.tensor([self.decided(text, left) for text in texts], device=ended.device)
        self.rows = self.rows.to(ended) | ended
        return ended


def write_answers(
    lm: LanguageModel,
    input_ids: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    decided: Decided | None,
    cache: Cache | None,
    segment: int,
    options: dict[str, Any],
) -> list[str]:
    """The answers of a batch of prompts.

    Args:
        lm: the model.
        input_ids: (batch, seq).
        mask: of the same shape, 0 at padding.
        max_new_tokens: upper limit of an answer, in tokens.
        decided: an answer ends early once this holds.
        cache: all columns' keys and values but the last one's.
        segment: tokens of the first segment, for which a `StaticCache` has room; without one, `max_new_tokens`.
        options: of the model's own `generate`; with `eos_token_id`.
    """
    start = input_ids.shape[1]
    end = start + max_new_tokens
    rows = torch.arange(len(input_ids), device=input_ids.device)
    answers = [""] * len(rows)
    while True:
        reached = min(input_ids.shape[1] + segment, end)
        watch = Ended(lm, start, end, options["eos_token_id"] or [], decided)
        output = lm.model.generate(  # type: ignore[operator]
            input_ids=input_ids,
            attention_mask=mask,
            max_new_tokens=reached - input_ids.shape[1],
            stopping_criteria=StoppingCriteriaList([watch]),
            cache=cache,
            **options,
        )
        # What stops short of its segment has no row left.
        over = watch.rows if output.shape[1] == reached < end else torch.ones_like(watch.rows)
        texts = lm.tokenizer.batch_decode(output[over, start:], skip_special_tokens=True)
        for row, text in zip(rows[over].tolist(), texts, strict=True):
            answers[row] = text.strip()
        if over.all():
            return answers
        written = torch.ones_like(output[:, input_ids.shape[1] :])
        rows, input_ids, mask = rows[~over], output[~over], torch.cat([mask, written], dim=1)[~over]
        segment *= 2
        assert cache is not None  # there is no second segment without
        known = [(keys[~over, :, : reached - 1], values[~over, :, : reached - 1]) for keys, values in states(cache)]
        cache = whole_cache(lm.model, known, min(reached + segment, end))
