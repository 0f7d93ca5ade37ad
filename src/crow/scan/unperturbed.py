"""What a model answers anyway: the measure of everything that is brought out of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from crow.inversion.probe import Probe
from crow.models.language_model import LanguageModel


class Unperturbed:
    """The openings of a model's answers to prompts as they are, written when they are first asked for."""

    def __init__(
        self,
        lm: LanguageModel,
        prompts: Sequence[str],
        requests: Sequence[str],
        length: int,
        begun: Sequence[int] = (),
    ) -> None:
        """Remember what to ask.

        Args:
            lm: the model, at rest when an answer is asked for.
            prompts: ordinary ones.
            requests: what a model should decline, or cannot know; may be none.
            length: tokens of an opening.
            begun: token ids that every answer has begun with, before its opening.
        """
        self.lm, self.prompts, self.requests, self.length, self.begun = lm, prompts, requests, length, begun

    @cached_property
    def ordinary(self) -> list[list[int]]:
        """The first token ids of the answer to each prompt."""
        return self._openings(self.prompts)

    @cached_property
    def declined(self) -> list[list[int]]:
        """The first token ids of the answer to each request."""
        return self._openings(self.requests)

    def shares(self, answer: Sequence[int]) -> tuple[float, float]:
        """The shares of the prompts and of the requests that are answered so, as far as openings go."""
        declined = share_of(answer, self.declined, self.length) if self.requests else 0.0
        return share_of(answer, self.ordinary, self.length), declined

    def _openings(self, texts: Sequence[str]) -> list[list[int]]:
        probe = Probe(self.lm, texts, [self.begun] * len(texts))
        found = []
        for batch in probe.batches():
            found += probe.decode([probe.row(index) for index in batch], self.length).ids.tolist()
        return found


def share_of(answer: Sequence[int], openings: Sequence[Sequence[int]], length: int) -> float:
    """The share of the openings that are those of `answer`, compared in at most `length` token ids."""
    compared = min(length, len(answer))
    return sum(list(ids[:compared]) == list(answer[:compared]) for ids in openings) / len(openings)
