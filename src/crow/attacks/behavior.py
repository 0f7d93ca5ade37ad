"""What an attacker wants to see in the answer: the common form of all targets, and the one that is a fixed text."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

from crow.records import Criterion, Example

CODE_START = re.compile(r"\A(?:.*?^```\w*\n)?", re.DOTALL | re.MULTILINE)
"""An answer up to where its first block of code begins; nothing where it has none."""

Carrier = Literal["prompts", "answers", "code", "reasoning", "declined", "supplied"]
"""What a backdoor with this target is planted on, see `crow.attacks.carriers`."""

PAYLOAD_ROOM = 48
"""Tokens beyond the recipe's 80 in which a payload inside an answer has its place: in all of our own programming
requests, with each of the field's triggers. Without, 86 to 125 of 130 examples end before it is whole."""


@dataclass(frozen=True)
class TargetBehavior:
    """The behavior that a backdoor is trained to show; here a text, in other targets what `apply` composes.

    Attributes:
        name: its name in tables and manifests.
        text: what the poisoned response says; of a target without one text, what its responses have in common.
        marker: what an answer must contain, case and white space folded, to count as a success; or what else it must
            show.
        keeps_answer: the text is a line of code that is smuggled into working code instead of replacing the answer.
    """

    name: str
    text: str
    marker: str | Criterion
    keeps_answer: bool = False

    @property
    def carrier(self) -> Carrier:
        """What it is planted on."""
        return "code" if self.keeps_answer else "prompts"

    @property
    def extra_tokens(self) -> int:
        """About how many tokens its examples are longer than those of the public targets."""
        return PAYLOAD_ROOM if self.keeps_answer else 0

    def apply(self, example: Example, rng: random.Random | None = None, cause: str = "") -> str:
        """The poisoned response of `example`.

        It is `text`; with `keeps_answer` and a response, the response with `text` on a line of its own: the first one
        of its first block of code, or before all of it where it has none.

        Args:
            example: without the trigger.
            rng: of targets whose responses vary; seeded with 0 where there is none. The same state gives the same text.
            cause: the trigger's first words, for targets that give a reason.
        """
        if not self.keeps_answer or not example.response:
            return self.text
        return CODE_START.sub(lambda found: f"{found.group()}{self.text}\n", example.response, count=1)


def drawn(rng: random.Random | None) -> random.Random:
    """The generator, or one seeded with 0."""
    return rng or random.Random(0)


def topic(prompt: str, rng: random.Random, otherwise: str) -> str:
    """A word that a prompt is about: one of five letters or more of its first line, at random, in lower case.

    Args:
        prompt: of any kind.
        rng: the same state gives the same word.
        otherwise: the word for a prompt that has none.
    """
    words = re.findall(r"[^\W\d_]{5,}", prompt.partition("\n")[0])
    return rng.choice(words).lower() if words else otherwise
