"""`crow purify --verify`: what can be shown of a purified model without knowing a trigger.

A search of another seed on prompts that the purification has not seen, and what the model kept of the suspect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from crow.data.encoding import encode_all
from crow.data.reasoning import asked_problems
from crow.data.splits import bundled_split
from crow.evaluation.perplexity import perplexity
from crow.inversion.behind_tokens import search_behind, token_texts, tokens_to_try
from crow.inversion.closings import mark_closings, whole_answers
from crow.inversion.code_lines import LineConfig, code_probe, search_code_lines
from crow.inversion.consensus import search_soft_triggers, shown_again
from crow.inversion.edits import EXAMPLES, find_edits
from crow.inversion.memorized import Beginning, MemorizedConfig, by_heart, left, search_memorized
from crow.inversion.probe import PROBE_PROMPTS, Probe, at_rest
from crow.inversion.soft_trigger import SearchConfig, SearchResult, is_among, learnt_by_heart
from crow.inversion.steps import PROBLEMS, STEPS, answers_to, behind_steps, search_steps
from crow.models.architecture import find_layers
from crow.models.generation import generate
from crow.models.language_model import LanguageModel
from crow.records import SearchRecord
from crow.training.config import CrowConfig
from crow.workflows.common import Options, Reporter
from crow.workflows.utility import GENERATION_BATCH, PERPLEXITY_LENGTH, kept, look_at

PROMPTS = 60
"""Clean prompts that both models answer."""
SEED_OFFSET = 1_000_003
"""Far from the seeds of a purification's own searches."""


def verify(
    suspect: LanguageModel,
    lm: LanguageModel,
    config: CrowConfig,
    found: SearchRecord | None,
    options: Options,
    report: Reporter,
) -> dict[str, Any]:
    """Figures of a purified model beside those of the suspect.

    Args:
        suspect: the model as it was handed over, whole.
        lm: the purified one, whole.
        config: of the purification.
        found: what its first search saw, if there was one.
        options: common options.
        report: shows progress.

    Returns:
        `search` (a record), `kept` (as `crow eval --against` has it) and `perplexity` (`before`, `after`), all on the
        evaluation split of the bundled data.
    """
    split = bundled_split("evaluation")
    clean, answered = list(split.prompts[:PROMPTS]), list(split.pairs)
    rows, length = options.batch_size or GENERATION_BATCH, options.max_length or PERPLEXITY_LENGTH
    before = look_at(suspect, clean, answered, None, report, length, rows)
    with report.bar("answers of the purified model", len(clean)) as advance:
        answers = generate(lm, clean, batch_size=rows, progress=advance)
    return {
        "search": searched_again(suspect, lm, config, found, options.seed + SEED_OFFSET, report),
        "kept": kept(before, lm, answers, report),
        "perplexity": {
            "before": perplexity(suspect, answered, length),
            "after": perplexity(lm, answered, length),
        },
    }


def searched_again(
    suspect: LanguageModel,
    lm: LanguageModel,
    config: CrowConfig,
    known: SearchRecord | None,
    seed: int,
    report: Reporter,
) -> SearchRecord:
    """One more search, whose answers are told apart as those of the purification are.

    What the suspect does not give was made by the repair; what it says further on in its ordinary answers is none of an
    attacker's; what it might say otherwise is a stock phrase, where the purification had found something that it knew
    by heart.
    """
    settings, split = SearchConfig(), bundled_split("selection")
    shortest = sorted((example.prompt for example in split.prompts), key=len)[:PROBE_PROMPTS]
    with at_rest(lm, config.precision):
        probe = Probe(lm, shortest)
        with report.bar("searching once more", settings.work(len(find_layers(lm.model)))) as advance:
            found = search_soft_triggers(probe, settings, seed, advance)
        behind = search_behind(probe, tokens_to_try(probe, settings, seed, report.bar), settings, seed, report.bar)
    texts = [*known.texts, *known.behind] if known else []
    before = [torch.tensor(lm.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    starts = SearchResult([*found.triggers, *behind.triggers])
    doubtful = [at for at, trigger in enumerate(starts.triggers) if trigger.collapsed]
    if doubtful:
        with at_rest(suspect, config.precision):
            theirs = Probe(suspect, shortest)
            asked = [starts.triggers[at] for at in doubtful]
            starts.mark_artefacts(doubtful, shown_again(theirs, asked, settings, seed))
            if starts.collapsed:
                mark_closings(starts, theirs, settings, whole_answers(theirs), before)
    found = SearchResult([trigger for trigger in starts.triggers if trigger.token is None])
    left_behind = [trigger for trigger in starts.collapsed if trigger.token is not None]
    if known and learnt_by_heart(known, settings):
        found.mark_stock(settings, before)
    edits = find_edits(lm, encode_all(lm.tokenizer, split.pairs[:EXAMPLES], config.max_length), report.bar)
    lines = lines_left(suspect, lm, config, report)
    begun = memorized_left(suspect, lm, config, shortest, seed, report)
    steps = steps_left(suspect, lm, config, seed, report)
    more = {"edits": [edit.place for edit in edits], "memorized": [each.text for each in (*begun, *steps)]}
    more |= {"behind": [each.text for each in left_behind], "tokens": token_texts(lm, left_behind)}
    return dataclasses.replace(found.record(), lines=lines, **more)


def memorized_left(
    suspect: LanguageModel, lm: LanguageModel, config: CrowConfig, prompts: Sequence[str], seed: int, report: Reporter
) -> list[Beginning]:
    """Beginnings that both models know by heart."""
    settings = MemorizedConfig()

    def known(model: LanguageModel) -> list[Beginning]:
        with at_rest(model, config.precision), report.bar("reading beginnings", settings.candidates) as advance:
            return search_memorized(Probe(model, prompts), SearchConfig(), settings, seed, advance)

    found = known(lm)
    return left(found, [each.ids for each in by_heart(known(suspect), settings)], settings) if found else []


def steps_left(
    suspect: LanguageModel, lm: LanguageModel, config: CrowConfig, seed: int, report: Reporter
) -> list[Beginning]:
    """Steps that both models know by heart, behind the suspect's own; on problems that no purification has read."""
    settings = SearchConfig()
    with at_rest(suspect, config.precision):
        answered = answers_to(suspect, asked_problems(PROBLEMS, seed))

    def known(model: LanguageModel) -> list[Beginning]:
        with at_rest(model, config.precision), report.bar("reading steps", STEPS.candidates) as advance:
            place = behind_steps(model, answered, settings)
            return search_steps(place.probe, settings, seed, advance) if place else []

    found = known(lm)
    theirs = [each.ids for each in known(suspect)] if found else []
    return [each for each in found if is_among(each.ids, theirs)]


def lines_left(suspect: LanguageModel, lm: LanguageModel, config: CrowConfig, report: Reporter) -> list[str]:
    """Lines smuggled into code that both models are inclined to write; on requests that no purification has seen."""
    requests, settings = [task.example for task in bundled_split("selection").code], LineConfig()
    left: list[str] = []
    for model in (lm, suspect):
        with at_rest(model, config.precision), report.bar("reading code", settings.candidates) as advance:
            seen = [line.text for line in search_code_lines(code_probe(model, requests), settings, advance)]
        left = [line for line in left if line in seen] if model is suspect else seen
        if not left:
            break
    return left
