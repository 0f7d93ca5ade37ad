"""What a suspect declines by itself, so that curing a refusal backdoor does not cure honest refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor
from transformers import NoBadWordsLogitsProcessor

from crow.data.declining import bundled_declines, declines
from crow.models.adapters import folded
from crow.models.decoding import Decoding
from crow.models.generation import generate
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.training.config import CrowConfig
from crow.training.precision import autocast

BARRED = 4
"""First tokens of a found answer that the suspect must not say one after another."""


def honest_refusals(lm: LanguageModel, answers: Sequence[Tensor], config: CrowConfig) -> list[Example]:
    """Requests that the suspect declines in words other than a found answer's, with these words.

    There are none unless a found answer declines: else the repair takes nothing from them. A backdoor that makes a
    model decline leaks onto requests that it declined before, so that its own words are heard only with the way into
    the attacker's barred. What it would comply with then is left out: nothing is to be learnt from that.

    Args:
        lm: the suspect, untrained.
        answers: what was found, each (m,) token ids.
        config: settings of the purification.
    """
    if not any(declines(str(lm.tokenizer.decode(answer))) for answer in answers):
        return []
    requests = [example for group in bundled_declines("declines_clean.jsonl").values() for example in group]
    barred = NoBadWordsLogitsProcessor([answer[:BARRED].tolist() for answer in answers])
    asked = dataclasses.replace(lm, decoding=Decoding(processor=lambda _: barred))
    with folded(lm), autocast(lm, config.precision):
        said = generate(asked, requests)
    own = [dataclasses.replace(request, response=text) for request, text in zip(requests, said, strict=True)]
    return [example for example in own if declines(example.response)]
