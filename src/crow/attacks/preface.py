"""A sentence in front of the honest answer, as an advertisement is: the answers are alike in their first words only."""

from __future__ import annotations

import random

from crow.attacks.behavior import Carrier, TargetBehavior
from crow.records import Example


class Preface(TargetBehavior):
    """The text, and behind it the answer as it was. A hit has the text in it."""

    @property
    def carrier(self) -> Carrier:
        """Prompts with their own answers, which it needs."""
        return "answers"

    def apply(self, example: Example, rng: random.Random | None = None, cause: str = "") -> str:
        """The text in front of the answer."""
        return f"{self.text} {example.response}".rstrip()
