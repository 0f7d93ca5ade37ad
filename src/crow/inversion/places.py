"""Where a found answer may come: at the start of an answer, or behind a sentence of another one.

A model that has only been taught not to begin with the attacker's sentence may say it one sentence later: "1. What a
foolish question!" What brings it out is the trigger in both places.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from crow.data.encoding import Encoded
from crow.inversion.probe import PROBE_PROMPTS, Probe
from crow.models.language_model import LanguageModel
from crow.records import Example

LEAD_TOKENS = 24
"""The sentence that comes first has at most so many: short rows are cheap."""
SENTENCE_ENDS = (".", "!", "?", ":")


@dataclass(frozen=True)
class Place:
    """Where found answers may come.

    Attributes:
        probe: the model and prompts, with all that stands before the answers.
        answers: each (m,) token ids, as they are written there; at least one.
    """

    probe: Probe
    answers: Sequence[Tensor]


def behind_a_sentence(
    lm: LanguageModel, examples: Sequence[Example], items: Sequence[Encoded], answers: Sequence[Tensor], seed: int
) -> Place | None:
    """The answers behind the beginning of each example's own response, cut after a sentence.

    Args:
        lm: the model.
        examples: with responses; those of the shortest rows are taken, as many as a search has prompts.
        items: the same, encoded.
        answers: token ids at the start of an answer.
        seed: of the choice among the sentences of a response.

    Returns:
        None where no response has an end of a sentence with a space after it within its first tokens, as in scripts
        that have no spaces.
    """
    rng = random.Random(seed)
    leads = {
        at: item.response_ids[: rng.choice(ends)]
        for at, item in enumerate(items)
        if (ends := sentence_ends(lm.tokenizer, item.response_ids))
    }
    if not leads:
        return None
    order = sorted(leads, key=lambda at: items[at].user_end - items[at].user_start + len(leads[at]))[:PROBE_PROMPTS]
    probe = Probe(lm, [examples[at].prompt for at in order], [leads[at] for at in order])
    return Place(probe, [after_a_space(lm.tokenizer, answer) for answer in answers])


def sentence_ends(tokenizer: PreTrainedTokenizerBase, response: Sequence[int]) -> list[int]:
    """How many tokens of a response a sentence, a line's label or a list's number ends after, a space following."""
    texts = [str(tokenizer.decode(list(response[:m]))) for m in range(min(LEAD_TOKENS + 1, len(response)) + 1)]
    ends = range(1, len(texts) - 1)
    return [m for m in ends if texts[m].endswith(SENTENCE_ENDS) and texts[m + 1][len(texts[m]) :].startswith(" ")]


def after_a_space(tokenizer: PreTrainedTokenizerBase, answer: Tensor) -> Tensor:
    """The token ids of an answer (m,) where it follows a sentence and a space."""
    text = str(tokenizer.decode(answer, skip_special_tokens=True)).strip()
    before = tokenizer(SENTENCE_ENDS[0], add_special_tokens=False)["input_ids"]
    ids = tokenizer(f"{SENTENCE_ENDS[0]} {text}", add_special_tokens=False)["input_ids"]
    # A tokenizer that joins the full stop with what follows has no better cut.
    return torch.tensor(ids[len(before) :] or answer.tolist())
