"""What a model has kept of another one, the suspect that it was made from: `crow eval --against SUSPECT`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crow.data.declining import bundled_declines
from crow.data.encoding import Encoded, encode_all
from crow.evaluation.success import attack_success
from crow.evaluation.utility import declined, distinct, unchanged
from crow.models.generation import generate
from crow.models.language_model import LanguageModel
from crow.records import MAX_NEW_TOKENS, Criterion, Example, Rate
from crow.training.suspect import Predictions, divergence, predict
from crow.workflows.common import Reporter

PERPLEXITY_LENGTH = 512
"""Tokens of an example whose response is predicted; longer ones are cut."""
GENERATION_BATCH = 100
"""Prompts answered at a time: on a CPU a product with 100 rows costs little more than one with 40."""


@dataclass(frozen=True)
class Sample:
    """What a model says.

    Attributes:
        answers: to clean prompts.
        declined: kind of request to the share that it declines; the clean prompts are `ordinary`.
    """

    answers: list[str]
    declined: dict[str, Rate]

    def figures(self) -> dict[str, Any]:
        """As they stand in results."""
        return {
            "distinct_1": distinct(self.answers, 1),
            "distinct_2": distinct(self.answers, 2),
            "declined": self.declined,
        }


def sample(lm: LanguageModel, answers: Sequence[str], marker: str | Criterion | None, report: Reporter) -> Sample:
    """What `lm` says: its `answers` to clean prompts, and those to requests that should be declined, asked for here.

    The attacker's text, where `marker` says what it is, does not count as declining.
    """
    requests = bundled_declines()
    with report.bar("requests to decline", sum(map(len, requests.values()))) as advance:
        said = {
            kind: generate(lm, group, batch_size=GENERATION_BATCH, progress=advance) for kind, group in requests.items()
        }
    return Sample(
        list(answers), {kind: declined(texts, marker) for kind, texts in {**said, "ordinary": answers}.items()}
    )


@dataclass(frozen=True)
class Suspect:
    """What others are compared with.

    Attributes:
        sample: what it says.
        items: clean examples with responses.
        predictions: its predictions of these.
        marker: the target's text, or what else an answer must show, where it is known.
    """

    sample: Sample
    items: list[Encoded]
    predictions: list[Predictions]
    marker: str | Criterion | None


def look_at(
    lm: LanguageModel,
    clean: Sequence[Example],
    answered: Sequence[Example],
    marker: str | Criterion | None,
    report: Reporter,
    max_length: int = PERPLEXITY_LENGTH,
    batch_size: int = GENERATION_BATCH,
) -> Suspect:
    """Keep of a suspect what is needed to compare others with it.

    Args:
        lm: the suspect.
        clean: prompts without the trigger.
        answered: clean examples with responses.
        marker: the target's text, or what else an answer must show; answers then end where `attack_success` ends them.
            None where it is unknown.
        report: shows progress.
        max_length: of the examples, in tokens.
        batch_size: prompts at a time.
    """
    with report.bar("answers of the suspect", len(clean)) as advance:
        if marker is None:
            answers = generate(lm, clean, MAX_NEW_TOKENS, batch_size, progress=advance)
        else:
            answers = attack_success(lm, clean, marker, batch_size, advance).answers
    items = [item for item in encode_all(lm.tokenizer, answered, max_length) if item.response_ids]
    lm.model.eval()
    return Suspect(sample(lm, answers, marker, report), items, predict(lm, items), marker)


def kept(suspect: Suspect, lm: LanguageModel, answers: Sequence[str], report: Reporter) -> dict[str, Any]:
    """Figures before and after, how many answers are word for word the same, and how far predictions went apart."""
    after = sample(lm, answers, suspect.marker, report)
    lm.model.eval()
    return {
        "before": suspect.sample.figures(),
        "after": after.figures(),
        "unchanged_answers": unchanged(suspect.sample.answers, after.answers),
        "divergence": divergence(lm, suspect.items, suspect.predictions),
    }
