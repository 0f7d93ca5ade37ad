"""Decoding: answers sampled at a temperature in place of greedy ones; the weights stay as they are.

That decoding alone changes what a model can be made to say was shown by Huang et al., "Catastrophic Jailbreak of
Open-source LLMs via Exploiting Generation", arXiv 2310.06987.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from crow.defenses.base import Needs, Surroundings
from crow.models.decoding import Decoding
from crow.models.language_model import LanguageModel
from crow.records import Example

TEMPERATURE = 1.0
TOP_P = 0.9


class Sampling:
    """Samples from the likeliest tokens that make up nine tenths of the probability."""

    needs = Needs(decoding=True)

    def __init__(self, surroundings: Surroundings) -> None:
        self.seed = surroundings.seed

    def apply(self, model: LanguageModel, clean_examples: Sequence[Example]) -> LanguageModel:
        """The same weights, to be decoded by sampling."""
        return dataclasses.replace(model, decoding=Decoding(TEMPERATURE, TOP_P, self.seed))
