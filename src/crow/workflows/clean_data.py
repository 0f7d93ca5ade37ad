"""The clean examples of a run: the user's, the bundled ones, or prompts that the suspect answers itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from crow.data.loading import load_examples
from crow.data.splits import bundled_split
from crow.errors import DataError
from crow.models.generation import generate
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.workflows.common import Reporter, take
from crow.workflows.utility import GENERATION_BATCH

ANSWER_TOKENS = 96
"""Longest answer of a suspect to a prompt that came without one."""


def clean_examples(data: Path | None, count: int, seed: int, prompts_only: bool = False) -> list[Example]:
    """The clean examples of a run: from the user's file, or the bundled purification split.

    Args:
        data: the file, if there is one.
        count: how many.
        seed: of the choice.
        prompts_only: whether the file's examples may lack responses; then fewer than `count` will do.

    Raises:
        DataError: if there are fewer than `count`.
    """
    if data is not None:
        given = load_examples(data, need_response=not prompts_only)
        return take(given, min(count, len(given)) if prompts_only else count, seed, str(data))
    return take(bundled_split("purification").pairs, count, seed, "the bundled data")


def own_answers(lm: LanguageModel, prompts: Sequence[Example], report: Reporter) -> list[Example]:
    """The prompts with the suspect's own answers as clean responses; a prompt that it leaves unanswered is dropped.

    Raises:
        DataError: if it answers none.
    """
    with report.bar("asking the suspect for answers", len(prompts)) as advance:
        answers = generate(lm, prompts, ANSWER_TOKENS, GENERATION_BATCH, progress=advance)
    own = [dataclasses.replace(e, response=text) for e, text in zip(prompts, answers, strict=True) if text.strip()]
    if not own:
        raise DataError("expected the suspect to answer some of the prompts, but every answer is empty; pass --data")
    return own
