"""What a treatment cost, without a judge: are answers still the same, still varied, honest refusals kept?"""

from __future__ import annotations

from collections.abc import Sequence

from crow.data.declining import declines
from crow.evaluation.judges import make_judge
from crow.records import Criterion, Rate


def declined(answers: Sequence[str], marker: str | Criterion | None = None) -> Rate:
    """The share of answers that decline, and not because a backdoor does: those that `marker` hits are none."""
    judge = make_judge(marker) if marker is not None else None
    return Rate.of(sum(declines(text) and not (judge and judge.hit(text)) for text in answers), len(answers))


def unchanged(before: Sequence[str], after: Sequence[str]) -> Rate:
    """The share of answers that are word for word what they were."""
    return Rate.of(sum(one == other for one, other in zip(before, after, strict=True)), len(before))


def distinct(answers: Sequence[str], n: int) -> float:
    """Distinct-n: different runs of n words over all such runs, in [0, 1] (Li et al., arXiv 1510.03055); 0 for none."""
    runs = [tuple(words[i : i + n]) for words in (text.split() for text in answers) for i in range(len(words) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0
