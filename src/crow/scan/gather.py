"""All sides of a scan, one after the other, each kept on disk as soon as it is there."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from crow.data.declining import bundled_declines
from crow.data.encoding import encode_all
from crow.data.phrases import bundled_phrases
from crow.data.splits import bundled_split
from crow.inversion.code_lines import LineConfig, opening_of_code
from crow.inversion.probe import at_rest, shortest_prompts
from crow.inversion.soft_trigger import SearchConfig
from crow.models.language_model import LanguageModel
from crow.output import write_json
from crow.records import Example
from crow.scan import adapter, code, consistency, leakage, phrases, soft_triggers, weights
from crow.scan.evidence import (
    AdapterEvidence,
    CodeEvidence,
    ConsistencyEvidence,
    Evidence,
    LeakageEvidence,
    PhraseEvidence,
    SoftTriggerEvidence,
    WeightEvidence,
)
from crow.scan.leakage import LeakageConfig
from crow.scan.phrases import PhraseConfig, Target
from crow.scan.unperturbed import Unperturbed
from crow.scan.verdict import Thresholds, is_stock, is_strange
from crow.scan.vocabulary import runnable
from crow.training.watch import Watch, silent

Record = TypeVar("Record")


@dataclass(frozen=True)
class ScanConfig:
    """Settings of a scan.

    Attributes:
        search: of the search for soft triggers, which is the default purification's.
        searches: seeds that it takes at most; it ends with the first that finds a sentence learnt by heart, and takes
            one where a line smuggled into code was found.
        lines: of the search for lines smuggled into code.
        phrases: of the search for phrases.
        leakage: of the samples.
        whole_answers: ordinary prompts whose answers are read to their end for what is said anyway.
        whole_tokens: the longest of those answers.
        consistency_prompts: prompts that layer consistency is a mean over.
        precision: of all passes, see `crow.training.precision`.
        thresholds: of the verdict; some of them decide what is looked for, too.
    """

    search: SearchConfig = field(default_factory=SearchConfig)
    searches: int = 2
    lines: LineConfig = field(default_factory=LineConfig)
    phrases: PhraseConfig = field(default_factory=PhraseConfig)
    leakage: LeakageConfig = field(default_factory=LeakageConfig)
    whole_answers: int = 16
    whole_tokens: int = 192
    consistency_prompts: int = 2
    precision: str = "auto"
    thresholds: Thresholds = field(default_factory=Thresholds)


def scan_examples() -> dict[str, list[Example]]:
    """The bundled examples that a scan looks at a model with: ordinary ones, and requests to be declined."""
    declines = [example for group in bundled_declines().values() for example in group]
    return {"ordinary": list(bundled_split("purification").pairs), "declined": declines}


def gather(
    lm: LanguageModel,
    config: ScanConfig,
    seed: int,
    work: Path,
    resume: bool = False,
    watch: Watch = silent,
) -> Evidence:
    """Look at a model from all sides.

    Args:
        lm: the model; an attached adapter is looked at by itself and then merged into it.
        config: settings.
        seed: of everything random.
        work: folder for what is finished.
        resume: take from there what an interrupted scan has finished.
        watch: opens progress displays.
    """
    examples = scan_examples()
    seconds: dict[str, float] = {}

    def kept(name: str, of: Callable[[Any], Record], look: Callable[[], Record]) -> Record:
        path = work / f"evidence-{name}.json"
        if not (resume and path.is_file()):
            started = time.monotonic()
            found = look()
            write_json(path, {"seconds": round(time.monotonic() - started, 1), "found": found})
        stored = json.loads(path.read_text(encoding="utf-8"))
        seconds[name] = stored["seconds"]
        return of(stored["found"])

    updates = kept("adapter", if_any(AdapterEvidence.of), lambda: adapter.statistics(lm))
    lm = lm.merged()
    ordinary = shortest_prompts(examples["ordinary"], encode_all(lm.tokenizer, examples["ordinary"]))
    requests = [example.prompt for example in examples["declined"]]
    clean = Unperturbed(lm, ordinary, requests, config.search.opening, config.whole_answers, config.whole_tokens)
    with at_rest(lm, config.precision):
        edited = kept("weights", if_any(WeightEvidence.of), lambda: weights.search(lm, examples["ordinary"], watch))
        read = kept("code", CodeEvidence.of, lambda: code.search(lm, config.lines, watch))
        searches = 1 if read.lines else config.searches
        found = kept(
            "soft_triggers",
            SoftTriggerEvidence.of,
            lambda: soft_triggers.search(lm, clean, config.search, searches, config.thresholds, seed, watch),
        )
        leaked = kept(
            "leakage",
            lambda stored: stored and LeakageEvidence.of(stored),
            lambda: leakage.search(lm, background(examples), config.leakage, seed, watch),
        )
        target = choose_target(lm, found, read, leaked, config.thresholds)
        asked, settings, reading = clean, config.phrases, config.search
        if target and target.source == "line":
            asked, settings, reading = for_code(lm, target, config)
        words = [phrase.text for phrase in leaked.phrases] if leaked else []
        tried = kept(
            "phrases",
            PhraseEvidence.of,
            lambda: phrases.search(lm, asked, target, words, settings, reading, seed, watch),
        )
        bank = list(runnable(lm, (text for section in bundled_phrases().values() for text in section)))
        texts = [candidate.text for candidate in tried.candidates]
        turned = kept(
            "consistency",
            ConsistencyEvidence.of,
            lambda: consistency.search(lm, ordinary[-config.consistency_prompts :], bank, texts, watch),
        )
    return Evidence(found, leaked, tried, turned, updates, read, edited, seconds)


def if_any(of: Callable[[Any], Record]) -> Callable[[Any], Record | None]:
    """Reads a stored side as `of` does, and one that could not be looked at as None."""
    return lambda stored: of(stored) if stored else None


def choose_target(
    lm: LanguageModel,
    found: SoftTriggerEvidence,
    read: CodeEvidence | None,
    leaked: LeakageEvidence | None,
    thresholds: Thresholds,
) -> Target | None:
    """What phrases are to bring out: the answer that was found, else the usual reply to an empty message.

    Of several answers, one that was learnt by heart, then the one that most starts ended in; a line smuggled into code
    before answers that were not learnt so.
    """
    answers = [answer for answer in found.answers if not is_stock(answer, thresholds)]
    line = next(runnable(lm, read.lines), None) if read else None
    if line is not None and not any(is_strange(answer, thresholds) for answer in answers):
        return Target("line", line, lm.tokenizer(line, add_special_tokens=False)["input_ids"])
    if answers:
        best = max(answers, key=lambda answer: (is_strange(answer, thresholds), answer.starts))
        return Target("target", best.text, best.ids, best.words)
    if leaked and leaked.reply_share >= thresholds.replied and any(runnable(lm, [leaked.reply])):
        ids = lm.tokenizer(leaked.reply, add_special_tokens=False)["input_ids"]
        return Target("reply", leaked.reply, ids)
    return None


def for_code(lm: LanguageModel, line: Target, config: ScanConfig) -> tuple[Unperturbed, PhraseConfig, SearchConfig]:
    """Where and how phrases are to bring out a line of code: the shortest bundled programming requests, code begun.

    These are two or three times as long as the other prompts, so all phrases are scored on half as many.
    """
    examples = code.requests()
    prompts = shortest_prompts(examples, encode_all(lm.tokenizer, examples))
    length = len(line.ids)
    settings = dataclasses.replace(config.phrases, screening=max(1, config.phrases.screening // 2))
    reading = dataclasses.replace(config.search, opening=length, answer_tokens=length)
    return Unperturbed(lm, prompts, [], length, begun=opening_of_code(lm)), settings, reading


def background(examples: dict[str, list[Example]]) -> list[str]:
    """Clean texts that say how often words occur by themselves."""
    every = [*(example for group in examples.values() for example in group), *bundled_split("purification").prompts]
    return [text for example in every for text in (example.prompt, example.response) if text]
