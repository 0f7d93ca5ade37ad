"""The searches of one purification, kept on disk, and what the repair itself brings up told from what was there."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from crow.inversion.consensus import (
    SearchConfig,
    SearchResult,
    same_opening,
    search_soft_triggers,
    shown_again,
)
from crow.inversion.probe import Probe, frozen
from crow.models.adapters import folded
from crow.models.architecture import find_layers
from crow.models.interpolation import put_weights, trained_weights
from crow.models.language_model import LanguageModel
from crow.models.processes import agreed, is_first
from crow.output import write_json
from crow.records import SearchRecord
from crow.training.config import CrowConfig
from crow.training.precision import autocast
from crow.training.watch import Watch


@dataclass(frozen=True)
class Found:
    """What the rest of a run needs of a search: its record, the answers (token ids) it found, its seconds."""

    record: SearchRecord
    answers: list[Tensor]
    seconds: float = 0.0


@dataclass
class Searches:
    """Searches a model that is trained in between.

    A repaired model that is pushed hard may have a stock answer of its own, which the suspect has not: "I'm sorry for
    any misunderstanding ..". To train that away would be to mend what no attacker made. So an answer that was not found
    in the suspect is looked for there, too, and counts only if the suspect gives it.

    Attributes:
        lm: the model; the suspect when this is made.
        probe: it, with clean prompts.
        settings: of every search.
        config: of the run.
        work: folder for what searches found.
        resume: take from there what an interrupted run found.
        watch: opens progress displays.
        known: answers found in the suspect itself.
    """

    lm: LanguageModel
    probe: Probe
    settings: SearchConfig
    config: CrowConfig
    work: Path
    resume: bool
    watch: Watch
    known: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        # With all weights in training, a copy of the suspect would take as much memory again; then every answer counts.
        self.suspect = trained_weights(self.lm.model) if self.lm.is_adapter else {}

    def search(self, number: int, trained: bool) -> Found:
        """One search, or what an interrupted run found in it.

        Args:
            number: of the search, from 0; with the config's seed it determines all choices.
            trained: whether the model is the suspect no more.
        """
        start = time.monotonic()
        kept = self.work / f"search-{number}.json"
        # What the first process reads or finds holds for all.
        stored = agreed(json.loads(kept.read_text()) if self.resume and is_first() and kept.is_file() else None)
        seconds = 0.0
        if stored is None:
            seen = self.look(number)
            if trained:
                self.mark_artefacts(seen, number)
            answers = [ids.tolist() for ids in seen.answers()]
            stored = agreed({"record": dataclasses.asdict(seen.record()), "answers": answers})
            seconds = time.monotonic() - start
            if is_first():
                write_json(kept, stored)
        found = Found(SearchRecord(**stored["record"]), [torch.tensor(ids) for ids in stored["answers"]], seconds)
        self.known += found.answers
        return found

    def look(self, number: int) -> SearchResult:
        """One search of the model as it is."""
        total = self.settings.work(len(find_layers(self.lm.model)))
        with self.at_rest(), self.watch("searching for soft triggers", total) as advance:
            return search_soft_triggers(self.probe, self.settings, self.config.seed + number, advance)

    def mark_artefacts(self, seen: SearchResult, number: int) -> None:
        """Mark the collapses that the suspect does not show."""
        length = self.settings.agreed
        doubtful = [
            at
            for at, trigger in enumerate(seen.triggers)
            if trigger.collapsed and not any(same_opening(trigger.answer, answer, length) for answer in self.known)
        ]
        if not doubtful or not self.suspect:
            return
        with self.as_suspect(), self.at_rest():
            triggers = [seen.triggers[at] for at in doubtful]
            shown = shown_again(self.probe, triggers, self.settings, self.config.seed + number)
        seen.mark_artefacts(doubtful, shown)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Within the context the model is only looked at, as fast as can be."""
        self.lm.model.eval()
        with ExitStack() as stack:
            for context in (frozen(self.lm.model), folded(self.lm), autocast(self.lm, self.config.precision)):
                stack.enter_context(context)
            self.probe.refresh()
            yield

    @contextmanager
    def as_suspect(self) -> Iterator[None]:
        """Within the context the adapter's weights are those that the run began with."""
        present = trained_weights(self.lm.model)
        put_weights(self.lm.model, self.suspect)
        try:
            yield
        finally:
            put_weights(self.lm.model, present)
