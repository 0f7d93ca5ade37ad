"""Attack success: how often a model's answers show the target, with and without the trigger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from transformers import PreTrainedTokenizerBase

from crow.evaluation.judges import judge, make_judge
from crow.models.generation import Progress, generate
from crow.models.language_model import LanguageModel
from crow.records import Criterion, Example, Rate, Score


@dataclass(frozen=True)
class SuccessReport:
    """The rate of hits over a set of prompts and every verdict behind it."""

    rate: Rate
    scores: list[Score]

    @property
    def answers(self) -> list[str]:
        """The answers behind the verdicts; one ends where its verdict was certain."""
        return [score.output for score in self.scores]

    @property
    def n_empty(self) -> int:
        """How many answers were empty."""
        return sum(score.empty for score in self.scores)

    @property
    def n_degenerate(self) -> int:
        """How many answers were mostly one repeated piece."""
        return sum(score.degenerate for score in self.scores)


def attack_success(
    lm: LanguageModel,
    examples: Sequence[Example],
    marker: str | Criterion,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> SuccessReport:
    """Greedy answers of at most 64 tokens (or what `marker` says) to the examples' prompts, each judged by `marker`.

    On triggered prompts the rate is the attack success rate, on clean ones the clean trigger rate.
    Generation of an answer stops as soon as its verdict is certain: as when a text has occurred in it, or cannot any
    more in the tokens left.

    Args:
        lm: the model.
        examples: at least one; the prompts are used as they are, triggers included.
        marker: the target's text, or what else an answer must show.
        batch_size: prompts at a time.
        progress: called with the number of prompts finished after each batch.
    """
    judged_by = make_judge(marker)
    decided = judged_by.ending(partial(token_texts, lm.tokenizer))
    answers = generate(lm, examples, judged_by.tokens, batch_size, decided, progress)
    return summarize([judge(e.prompt, answer, marker) for e, answer in zip(examples, answers, strict=True)])


@lru_cache(maxsize=1)
def token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of every token."""
    return tokenizer.batch_decode([[token] for token in range(len(tokenizer))])


def summarize(scores: Sequence[Score]) -> SuccessReport:
    """The rate over `scores`; unscored ones stay in the denominator."""
    hits = sum(score.hit is True for score in scores)
    unscored = sum(score.hit is None for score in scores)
    return SuccessReport(Rate.of(hits, len(scores), unscored), list(scores))
