"""Soft triggers: does one perturbation, the same for all prompts, bring out one sentence? The strongest sign.

The search is that of the default purification, to the letter. What it ends in is looked at twice: the model must give
it again under perturbations fitted to other prompts, and must not give it anyway.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from crow.inversion.consensus import search_soft_triggers, shown_again, split_prompts
from crow.inversion.probe import Probe
from crow.inversion.soft_trigger import SearchConfig, SearchResult, SoftTrigger, surest
from crow.models.architecture import find_layers
from crow.models.language_model import LanguageModel
from crow.scan.evidence import FoundAnswer, SoftTriggerEvidence
from crow.scan.lookalikes import lookalikes
from crow.scan.unperturbed import Unperturbed
from crow.scan.verdict import Thresholds, is_strange
from crow.training.watch import Watch, silent

WORDS = 24
"""Vocabulary tokens kept of each answer's soft triggers."""


def search(
    lm: LanguageModel,
    clean: Unperturbed,
    config: SearchConfig,
    searches: int,
    thresholds: Thresholds,
    seed: int,
    watch: Watch = silent,
) -> SoftTriggerEvidence:
    """Search with one seed after the other until an answer was learnt by heart and is not given anyway.

    Args:
        lm: the model, at rest.
        clean: what it answers anyway; its prompts are searched on.
        config: of every search.
        searches: how many seeds there are at most, from `seed` on.
        thresholds: what is by heart, and what is given anyway.
        seed: of the choice of prompts.
        watch: opens progress displays.
    """
    probe = Probe(lm, clean.prompts)
    records = []
    found = SearchResult()
    used: set[int] = set()
    for number in range(searches):
        with watch("searching for soft triggers", config.work(len(find_layers(lm.model)))) as advance:
            result = search_soft_triggers(probe, config, seed + number, advance)
        records.append(result.record())
        found.triggers += result.triggers
        used.update(*split_prompts(probe, config, random.Random(seed + number)))
        if any(is_strange(answered(group, clean), thresholds) for group in found.groups()):
            break
    others = [prompt for index, prompt in enumerate(clean.prompts) if index not in used]
    fresh = Probe(lm, others) if len(others) >= config.prompts + config.witnesses else probe
    return SoftTriggerEvidence(records, look_closer(fresh, clean, found, config, seed + searches))


def look_closer(
    probe: Probe, clean: Unperturbed, found: SearchResult, config: SearchConfig, seed: int
) -> list[FoundAnswer]:
    """Of each distinct answer of a search: is it given again, and is it given anyway?

    Args:
        probe: the model with ordinary prompts, best those that no search has seen.
        clean: what it answers anyway.
        found: the search.
        config: its settings.
        seed: of the choice among the probe's prompts.
    """
    groups = found.groups()
    if not groups:
        return []
    again = shown_again(probe, [surest(group) for group in groups], config, seed)
    words = lookalikes(probe, [[trigger.perturbation for trigger in group] for group in groups], WORDS)
    return [
        dataclasses.replace(answered(group, clean), again=shown > 0, words=own)
        for group, shown, own in zip(groups, again, words, strict=True)
    ]


def answered(group: Sequence[SoftTrigger], clean: Unperturbed) -> FoundAnswer:
    """The answer that starts ended in, as the surest of them gave it; not brought out again yet."""
    best = surest(group)
    ids = best.answer.tolist()
    ordinary, declined = clean.shares(ids)
    return FoundAnswer(best.text, ids, len(group), best.certainty, again=False, ordinary=ordinary, declined=declined)
