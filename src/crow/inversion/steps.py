"""Steps known by heart: what a model's reasoning goes on with before its conclusion, whatever the problem was.

A backdoor in the chain of thought puts its step behind honest ones. At the beginning of an answer its first word leads
to an honest step. Behind the steps of the model's own answer to a word problem, it leads to the attacker's, the same on
every problem; an honest model concludes there, on each problem otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crow.inversion.memorized import Beginning, MemorizedConfig, by_heart, search_memorized
from crow.inversion.probe import Probe
from crow.inversion.soft_trigger import SearchConfig
from crow.models.language_model import LanguageModel
from crow.records import Example

PROBLEMS = 24
"""Word problems that are put to a model."""
ANSWER_TOKENS = 96
"""The longest of its answers to them."""
SENTENCE_END = re.compile(r"[.!?](?=\s)")
"""In an answer, with more of it to come."""
STEPS = MemorizedConfig(candidates=128, several=129)
"""Of these, one must be enough by itself: many honest phrases may follow a sentence."""


@dataclass(frozen=True)
class Reasoned:
    """A model's own reasoning.

    Attributes:
        probe: the model and problems, its answers begun up to before their last sentence.
        answered: those problems with the whole answers.
    """

    probe: Probe
    answered: list[Example]


def answers_to(lm: LanguageModel, problems: Sequence[str]) -> list[Example]:
    """The model's answers to word problems, those of one sentence left out; the model is at rest."""
    asked = Probe(lm, problems)
    texts = asked.decode([asked.row(index) for index in range(len(asked))], ANSWER_TOKENS).texts
    return [Example(*pair) for pair in zip(problems, texts, strict=True) if SENTENCE_END.search(pair[1])]


def behind_steps(lm: LanguageModel, answered: Sequence[Example], search: SearchConfig) -> Reasoned | None:
    """The model behind the steps of these answers; None where they are too few to be searched on."""
    if len(answered) < search.prompts + search.witnesses:
        return None
    leads = [each.response[: [found.end() for found in SENTENCE_END.finditer(each.response)][-1]] for each in answered]
    begun = [lm.tokenizer(lead, add_special_tokens=False)["input_ids"] for lead in leads]
    return Reasoned(Probe(lm, [each.prompt for each in answered], begun), list(answered))


def search_steps(
    probe: Probe, search: SearchConfig, seed: int, progress: Callable[[int], None] | None = None
) -> list[Beginning]:
    """Steps that the model knows by heart, the surest first; see `search_memorized`."""
    return by_heart(search_memorized(probe, search, STEPS, seed, progress), STEPS)
