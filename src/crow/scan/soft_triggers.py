"""Soft triggers: does one perturbation, the same for all prompts, bring out one sentence? The strongest sign.

The search is that of the default purification, to the letter. What it ends in is looked at twice: the model must give it
again under perturbations fitted to other prompts, and must not give it anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crow.inversion.consensus import SearchConfig, SearchResult, same_opening, search_soft_triggers, shown_again
from crow.inversion.perturbation import Perturbation
from crow.inversion.probe import Probe
from crow.models.architecture import find_embeddings, find_layers
from crow.models.language_model import LanguageModel
from crow.scan.evidence import FoundAnswer, SoftTriggerEvidence
from crow.scan.vocabulary import plain_words
from crow.training.watch import Watch, silent

WORDS = 8
"""Vocabulary tokens told of each soft trigger."""


def search(
    lm: LanguageModel,
    prompts: Sequence[str],
    requests: Sequence[str],
    config: SearchConfig,
    searches: int,
    seed: int,
    watch: Watch = silent,
) -> SoftTriggerEvidence:
    """Search with one seed after the other until a start collapses.

    Args:
        lm: the model, at rest.
        prompts: ordinary ones, short.
        requests: what a model should decline or cannot know.
        config: of every search.
        searches: how many seeds there are at most, from `seed` on.
        seed: of the choice of prompts.
        watch: opens progress displays.
    """
    probe = Probe(lm, prompts)
    records = []
    found = SearchResult()
    for number in range(searches):
        with watch("searching for soft triggers", config.work(len(find_layers(lm.model)))) as advance:
            found = search_soft_triggers(probe, config, seed + number, advance)
        records.append(found.record())
        if found.collapsed:
            break
    return SoftTriggerEvidence(records, look_closer(lm, probe, requests, found, config, seed + searches))


def look_closer(
    lm: LanguageModel, probe: Probe, requests: Sequence[str], found: SearchResult, config: SearchConfig, seed: int
) -> list[FoundAnswer]:
    """Of each distinct answer of a search: is it given again, and is it given anyway?

    Args:
        lm: the model, at rest.
        probe: it, with ordinary prompts.
        requests: what a model should decline or cannot know.
        found: the search.
        config: its settings.
        seed: of the choice of other prompts.
    """
    groups = [
        [trigger for trigger in found.collapsed if same_opening(trigger.answer, answer, config.agreed)]
        for answer in found.answers()
    ]
    if not groups:
        return []
    again = shown_again(probe, [group[0] for group in groups], config, seed)
    ordinary, declined = (opening_ids(each, config.opening) for each in (probe, Probe(lm, requests)))
    answers = []
    for group, shown in zip(groups, again, strict=True):
        ids = group[0].answer.tolist()
        shares = (share_of(ids, openings, config.opening) for openings in (ordinary, declined))
        words = nearest_words(lm, [trigger.perturbation for trigger in group])
        answers.append(FoundAnswer(group[0].text, ids, len(group), shown, *shares, words))
    return answers


def opening_ids(probe: Probe, length: int) -> list[list[int]]:
    """The first `length` token ids of the model's answer to each prompt, padded with what ended it."""
    found = []
    for batch in probe.batches():
        ids = probe.decode([probe.row(index) for index in batch], length).ids.tolist()
        found += [row + row[-1:] * (length - len(row)) for row in ids]
    return found


def share_of(answer: Sequence[int], openings: Sequence[Sequence[int]], length: int) -> float:
    """The share of the openings that are those of `answer`, compared in at most `length` token ids."""
    compared = min(length, len(answer))
    return sum(list(ids[:compared]) == list(answer[:compared]) for ids in openings) / len(openings)


@torch.no_grad()
def nearest_words(lm: LanguageModel, perturbations: Sequence[Perturbation]) -> list[str]:
    """The vocabulary tokens whose embeddings point most as the perturbations do, by the mean cosine.

    The residual stream of the lower layers is still close to what the embeddings put there.
    """
    table = find_embeddings(lm.model).weight.float()
    vectors = torch.stack([perturbation.vector for perturbation in perturbations]).float()
    if table.shape[1] != vectors.shape[1]:  # embeddings that are projected, as some OPT models' are
        return []
    directions = torch.nn.functional.normalize(vectors, dim=1).mean(dim=0)
    cosines = table @ directions / table.norm(dim=1).clamp_min(1e-9)
    return plain_words(lm.tokenizer, cosines.argsort(descending=True).tolist(), WORDS)
