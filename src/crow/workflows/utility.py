"""What a model has kept of another one, the suspect that it was made from: `crow eval --against SUSPECT`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crow.data.encoding import Encoded, encode_all
from crow.data.loading import bundled_declines
from crow.evaluation.utility import declined, distinct, unchanged
from crow.models.generation import generate
from crow.models.language_model import LanguageModel
from crow.records import Example, Rate
from crow.training.suspect import Predictions, divergence, predict
from crow.workflows.common import Reporter

BATCH = 100


@dataclass(frozen=True)
class Sample:
    """What a model says.

    Attributes:
        answers: to clean prompts.
        declined: kind of request to the share that it declines.
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


def sample(lm: LanguageModel, clean: Sequence[Example], report: Reporter) -> Sample:
    """Answers to clean prompts and to requests that should be declined."""
    requests = bundled_declines()
    with report.bar("asking for what is kept", len(clean) + sum(map(len, requests.values()))) as advance:
        answers = generate(lm, clean, batch_size=BATCH, progress=advance)
        refused = {kind: declined(generate(lm, group, 64, BATCH, progress=advance)) for kind, group in requests.items()}
    return Sample(answers, refused)


def suspect_predictions(
    lm: LanguageModel, answered: Sequence[Example], max_length: int
) -> tuple[list[Encoded], list[Predictions]]:
    """The suspect's predictions of clean responses, kept to compare with."""
    items = [item for item in encode_all(lm.tokenizer, answered, max_length) if item.response_ids]
    lm.model.eval()
    return items, predict(lm, items)


def kept(
    before: Sample, after: Sample, lm: LanguageModel, items: Sequence[Encoded], predictions: Sequence[Predictions]
) -> dict[str, Any]:
    """Figures before and after, how many answers are word for word the same, and how far predictions went apart.

    Args:
        before: the suspect's.
        after: the model's.
        lm: the model.
        items: clean examples.
        predictions: the suspect's, of their responses.
    """
    lm.model.eval()
    return {
        "before": before.figures(),
        "after": after.figures(),
        "unchanged_answers": unchanged(before.answers, after.answers),
        "divergence": divergence(lm, items, predictions),
    }
