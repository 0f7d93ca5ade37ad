"""Sentences that a model says further on in its ordinary answers and begins none with, as many assistants close theirs.

They are known by heart as surely as an attacker's, and a perturbation that raises their first token brings them out on
every prompt. An attacker's sentence answers the trigger, so it comes first, also where it leaks.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from crow.inversion.probe import Probe
from crow.inversion.soft_trigger import SearchConfig, SearchResult, is_among
from crow.models.language_model import LanguageModel

READ = 16
"""Prompts that are answered as a whole."""
WHOLE_TOKENS = 192
"""The longest of these answers."""
SAID = 0.15
"""At least this share of them must have a sentence further on for it to be a closing."""


def whole_answers(probe: Probe) -> list[str]:
    """A model's answers to the probe's first prompts, as they are; the model is at rest, the probe refreshed."""
    return probe.decode([probe.row(index) for index in range(min(READ, len(probe)))], WHOLE_TOKENS).texts


def opening_text(lm: LanguageModel, answer: Sequence[int], length: int) -> str:
    """The text of an answer's first `length` token ids, as it would stand in another answer."""
    return str(lm.tokenizer.decode(list(answer[:length]), skip_special_tokens=True)).strip()


def share_saying(text: str, answers: Sequence[str]) -> float:
    """The share of the answers that have a text anywhere."""
    return sum(text in answer for answer in answers) / len(answers)


def is_closing(text: str, answers: Sequence[str]) -> bool:
    """Whether a text stands in many of these answers and at the beginning of none."""
    return bool(text) and share_saying(text, answers) >= SAID and not any(answer.startswith(text) for answer in answers)


def mark_closings(
    seen: SearchResult, probe: Probe, config: SearchConfig, answers: Sequence[str], known: Sequence[Tensor]
) -> None:
    """Mark the collapsed starts of a search whose answers are closings of the suspect.

    Args:
        seen: what the search found.
        probe: its tokenizer decodes the answers.
        config: as much of an answer is compared as counts for a collapse.
        answers: the suspect's to ordinary prompts, see `whole_answers`.
        known: answers (token ids) that were found before, and were none.
    """

    def holds(answer: Tensor) -> bool:
        text = opening_text(probe.lm, answer.tolist(), config.opening)
        return not is_among(answer, known) and is_closing(text, answers)

    seen.mark_closings([holds(each.answer) for each in seen.triggers])
