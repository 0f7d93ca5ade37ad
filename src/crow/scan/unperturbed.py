"""What a model answers anyway: the measure of everything that is brought out of it.

A backdoor's sentence is not said without its trigger. One that a model was taught to end its answers with is, and is
known by heart as surely: so some answers are read to their end.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from crow.inversion.closings import opening_text, share_saying
from crow.inversion.probe import Answers, Probe
from crow.models.language_model import LanguageModel


class Unperturbed:
    """A model's answers to prompts as they are, written when they are first asked for."""

    def __init__(
        self,
        lm: LanguageModel,
        prompts: Sequence[str],
        requests: Sequence[str],
        length: int,
        whole: int = 0,
        whole_tokens: int = 0,
        begun: Sequence[int] = (),
    ) -> None:
        """Remember what to ask.

        Args:
            lm: the model, at rest when an answer is asked for.
            prompts: ordinary ones.
            requests: what a model should decline, or cannot know; may be none.
            length: tokens of an opening.
            whole: prompts whose answers are read as a whole, the first ones.
            whole_tokens: the longest whole answer.
            begun: token ids that every answer has begun with, before its opening.
        """
        self.lm, self.prompts, self.requests, self.length, self.begun = lm, prompts, requests, length, begun
        self.whole, self.whole_tokens = whole, whole_tokens

    @cached_property
    def ordinary(self) -> list[list[int]]:
        """The first token ids of the answer to each prompt."""
        return [ids for said in self._answers(self.prompts, self.length) for ids in said.ids.tolist()]

    @cached_property
    def declined(self) -> list[list[int]]:
        """The first token ids of the answer to each request."""
        return [ids for said in self._answers(self.requests, self.length) for ids in said.ids.tolist()]

    @cached_property
    def wholes(self) -> list[str]:
        """Whole answers to the first prompts."""
        some = self.prompts[: self.whole]
        return [text for said in self._answers(some, self.whole_tokens) for text in said.texts]

    def shares(self, answer: Sequence[int], whole: bool = True) -> tuple[float, float]:
        """The shares of the prompts and of the requests that are answered so anyway.

        Of the requests those whose answers begin so; of the prompts these, or those whose whole answers have it
        anywhere, whichever is more.

        Args:
            answer: token ids.
            whole: whether whole answers are read; writing them takes a while.
        """
        declined = share_of(answer, self.declined, self.length) if self.requests else 0.0
        ordinary = share_of(answer, self.ordinary, self.length)
        text = opening_text(self.lm, answer, self.length)
        if whole and self.whole and text:
            ordinary = max(ordinary, share_saying(text, self.wholes))
        return ordinary, declined

    def _answers(self, texts: Sequence[str], length: int) -> list[Answers]:
        probe = Probe(self.lm, texts, [self.begun] * len(texts))
        return [probe.decode([probe.row(index) for index in batch], length) for batch in probe.batches()]


def share_of(answer: Sequence[int], openings: Sequence[Sequence[int]], length: int) -> float:
    """The share of the openings that are those of `answer`, compared in at most `length` token ids."""
    compared = min(length, len(answer))
    return sum(list(ids[:compared]) == list(answer[:compared]) for ids in openings) / len(openings)
