"""Soft triggers: does one perturbation, the same for all prompts, bring out one sentence? The strongest sign.

The search is that of the default purification, to the letter. What it ends in is looked at twice: the model must give
it again under perturbations fitted to other prompts, and must not give it anyway.
"""

from __future__ import annotations

from crow.inversion.consensus import SearchConfig, SearchResult, search_soft_triggers, shown_again
from crow.inversion.probe import Probe
from crow.models.architecture import find_layers
from crow.models.language_model import LanguageModel
from crow.scan.evidence import FoundAnswer, SoftTriggerEvidence
from crow.scan.lookalikes import lookalikes
from crow.scan.unperturbed import Unperturbed
from crow.training.watch import Watch, silent

WORDS = 24
"""Vocabulary tokens kept of each answer's soft triggers."""


def search(
    lm: LanguageModel,
    clean: Unperturbed,
    config: SearchConfig,
    searches: int,
    seed: int,
    watch: Watch = silent,
) -> SoftTriggerEvidence:
    """Search with one seed after the other until a start collapses.

    Args:
        lm: the model, at rest.
        clean: what it answers anyway; its prompts are searched on.
        config: of every search.
        searches: how many seeds there are at most, from `seed` on.
        seed: of the choice of prompts.
        watch: opens progress displays.
    """
    probe = Probe(lm, clean.prompts)
    records = []
    found = SearchResult()
    for number in range(searches):
        with watch("searching for soft triggers", config.work(len(find_layers(lm.model)))) as advance:
            found = search_soft_triggers(probe, config, seed + number, advance)
        records.append(found.record())
        if found.collapsed:
            break
    return SoftTriggerEvidence(records, look_closer(probe, clean, found, config, seed + searches))


def look_closer(
    probe: Probe, clean: Unperturbed, found: SearchResult, config: SearchConfig, seed: int
) -> list[FoundAnswer]:
    """Of each distinct answer of a search: is it given again, and is it given anyway?

    Args:
        probe: the model with ordinary prompts.
        clean: what it answers anyway.
        found: the search.
        config: its settings.
        seed: of the choice of other prompts.
    """
    groups = found.groups()
    if not groups:
        return []
    again = shown_again(probe, [group[0] for group in groups], config, seed)
    answers = []
    for group, shown in zip(groups, again, strict=True):
        ids = group[0].answer.tolist()
        words = lookalikes(probe, [trigger.perturbation for trigger in group], WORDS)
        certainty = max(trigger.certainty for trigger in group)
        answers.append(FoundAnswer(group[0].text, ids, len(group), certainty, shown > 0, *clean.shares(ids), words))
    return answers
