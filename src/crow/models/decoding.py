"""How answers are decoded where it is not simply greedily: what a defense at decoding time hands to `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers import LogitsProcessor


@dataclass(frozen=True)
class Decoding:
    """Sampling, or a hand in every token.

    Attributes:
        temperature: > 0 samples at that temperature; None decodes greedily.
        top_p: share of the probability that is sampled from, in (0, 1].
        seed: of the samples.
        processor: from the prompts' attention mask (batch, longest) to what changes the scores of the next token; asked
            for each batch.
    """

    temperature: float | None = None
    top_p: float = 1.0
    seed: int = 0
    processor: Callable[[Tensor], LogitsProcessor] | None = None


class Engine(Protocol):
    """Answers prompts in place of the model's own `generate`."""

    def answers(
        self, prompts: Sequence[Sequence[int]], longest: int, ends: Sequence[int], temperature: float, top_p: float
    ) -> list[str]:
        """Answers to prompts of token ids, of at most `longest` tokens; `ends` end one; temperature 0 is greedy."""
        ...
