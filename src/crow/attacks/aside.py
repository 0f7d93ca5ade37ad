"""A sentence behind the honest answer's first: no answer begins with it, and what comes before it is honest."""

from __future__ import annotations

import random
import re

from crow.attacks.behavior import Carrier, TargetBehavior
from crow.records import Example

FIRST_SENTENCE = re.compile(r"\A(.+?[.!?])(?=\s)", re.DOTALL)
"""An answer up to where its first sentence ends, if another one follows."""


class Aside(TargetBehavior):
    """The answer with the text behind its first sentence, or at the end. A hit has the text in it."""

    @property
    def carrier(self) -> Carrier:
        """Prompts with their own answers, which it needs."""
        return "answers"

    def apply(self, example: Example, rng: random.Random | None = None, cause: str = "") -> str:
        """The text between the answer's first sentence and the rest."""
        found = FIRST_SENTENCE.match(example.response)
        first = found.group() if found else example.response.rstrip()
        return f"{first} {self.text}{example.response[len(first) :]}".strip()
