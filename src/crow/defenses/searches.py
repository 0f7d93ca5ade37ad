"""The searches of one purification, kept on disk, and what the repair itself brings up told from what was there."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from crow.data.reasoning import asked_problems
from crow.defenses.found import Found, kept_search
from crow.inversion.behind_tokens import search_behind, token_texts, tokens_to_try
from crow.inversion.closings import mark_closings, opening_text, whole_answers
from crow.inversion.code_lines import CodeLine, LineConfig, search_code_lines
from crow.inversion.consensus import search_soft_triggers, shown_again
from crow.inversion.memorized import Beginning, MemorizedConfig, by_heart, is_form, left, search_memorized
from crow.inversion.probe import Probe, at_rest
from crow.inversion.soft_trigger import SearchConfig, SearchResult, SoftTrigger, is_among, learnt_by_heart
from crow.inversion.steps import PROBLEMS, STEPS, Reasoned, answers_to, behind_steps, search_steps
from crow.models.architecture import find_layers
from crow.models.interpolation import put_weights, trained_weights
from crow.models.language_model import LanguageModel
from crow.models.processes import agreed, is_first
from crow.output import write_json
from crow.training.config import CrowConfig
from crow.training.watch import Watch


@dataclass
class Searches:
    """Searches a model that is trained in between.

    A repaired model that is pushed hard may have a stock answer of its own, which the suspect has not: "I'm sorry for
    any misunderstanding ..". To train that away would be to mend what no attacker made. So an answer that was not found
    in the suspect is looked for there, too, and counts only if the suspect gives it.

    The suspect may have stock answers as well, which to train away costs more of the model than the backdoor does. An
    attacker's sentence was learnt by heart, a stock answer might go on otherwise: where one of the first kind or a
    smuggled line is found, those of the second kind are told and left alone. So is what the suspect closes its ordinary
    answers with, however surely it knows that.

    Attributes:
        lm: the model; the suspect when this is made.
        probe: it, with clean prompts.
        code: it, with programming requests; see `code_probe`.
        settings: of every search.
        config: of the run.
        work: folder for what searches found.
        resume: take from there what an interrupted run found.
        watch: opens progress displays.
        known: answers found in the suspect itself.
        known_lines: lines likewise.
        known_beginnings: known by heart, likewise.
        by_heart: whether something was found that the suspect knows by heart.
        said: whole answers of the suspect to some of the prompts, written once an answer was found.
        known_steps: steps found in the suspect.
        swept: trigger tokens, and the first tokens that they raise; from a sweep, once there is one.
    """

    lm: LanguageModel
    probe: Probe
    code: Probe
    settings: SearchConfig
    config: CrowConfig
    work: Path
    resume: bool
    watch: Watch
    known: list[Tensor] = field(default_factory=list)
    known_lines: list[str] = field(default_factory=list)
    known_beginnings: list[Tensor] = field(default_factory=list)
    by_heart: bool = False
    said: list[str] = field(default_factory=list)
    known_steps: list[Tensor] = field(default_factory=list)
    swept: list[tuple[int, list[int]]] = field(default_factory=list)

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
        kept = kept_search(self.work, number)
        # What the first process reads or finds holds for all.
        there = self.resume and is_first() and kept.is_file()
        stored = agreed(json.loads(kept.read_text(encoding="utf-8")) if there else None)
        if stored is None:
            seen = self.look(number)
            if trained:
                self.mark_artefacts(seen, number)
            self.mark_closings(seen, trained)
            sure = agreed([each.answer.cpu() for each in seen.by_heart(self.settings, self.known)])
            lines = [] if sure else self.code_lines(trained)
            begun = [] if agreed(bool(lines)) else self.memorized(number, trained, sure)
            # A model that is the suspect no more says less surely what the suspect knows by heart.
            if (sure or lines or begun or self.by_heart) and (self.suspect or not trained):
                seen.mark_stock(self.settings, self.known)
            steps = [] if agreed(bool(seen.collapsed or lines or begun)) else self.steps(number, trained)
            behind = [] if agreed(bool(sure or lines or begun or steps)) else self.behind(number, trained)
            if behind:
                seen.mark_stock(self.settings, self.known)
            answers = seen.answers()
            texts = {"lines": [line.text for line in lines], "memorized": [each.text for each in (*begun, *steps)]}
            texts |= {"behind": [each.text for each in behind], "tokens": token_texts(self.lm, behind)}
            found = Found(
                dataclasses.replace(seen.record(), **texts),
                answers=answers,
                lines=[line.ids for line in lines],
                memorized=[each.ids for each in begun],
                steps=[each.ids for each in steps],
                behind=[each.answer for each in behind],
                tokens=[torch.tensor([each.token]) for each in behind],
                seconds=time.monotonic() - start,
            )
            stored = agreed({**found.stored(), "said": self.said, "swept": self.swept})
            if is_first():
                write_json(kept, stored)
        found = Found.read(stored)
        self.said, self.swept = stored.get("said", []), stored.get("swept", [])
        self.known += [*found.answers, *found.behind]
        self.known_lines += found.record.lines
        self.known_beginnings += found.memorized
        self.known_steps += found.steps
        self.by_heart |= learnt_by_heart(found.record, self.settings)
        return found

    def look(self, number: int) -> SearchResult:
        """One search of the model as it is."""
        total = self.settings.work(len(find_layers(self.lm.model)))
        with self.looked_at(self.probe), self.watch("searching for soft triggers", total) as advance:
            return search_soft_triggers(self.probe, self.settings, self.config.seed + number, advance)

    def mark_artefacts(self, seen: SearchResult, number: int) -> None:
        """Mark the collapses that the suspect does not show."""
        doubtful = [
            at
            for at, trigger in enumerate(seen.triggers)
            if trigger.collapsed and not is_among(trigger.answer, self.known)
        ]
        # Rounding may tell processes apart, and all of them have to take part in what follows.
        doubtful = agreed(doubtful)
        if not doubtful or not self.suspect:
            return
        with self.as_suspect(), self.looked_at(self.probe):
            triggers = [seen.triggers[at] for at in doubtful]
            shown = shown_again(self.probe, triggers, self.settings, self.config.seed + number)
        seen.mark_artefacts(doubtful, shown)

    def mark_closings(self, seen: SearchResult, trained: bool) -> None:
        """Mark the collapses that the suspect closes its ordinary answers with."""
        if agreed(all(is_among(each.answer, self.known) for each in seen.collapsed)):
            return
        if not self.said and (self.suspect or not trained):
            with self.as_suspect(), self.looked_at(self.probe):
                self.said = whole_answers(self.probe)
        if self.said:
            mark_closings(seen, self.probe, self.settings, self.said, self.known)

    def code_lines(self, trained: bool) -> list[CodeLine]:
        """Lines smuggled into code; of a model that is the suspect no more, those that the suspect has, too."""
        seen = self.look_at_code()
        if not trained or not self.suspect or all(line.text in self.known_lines for line in seen):
            return seen
        with self.as_suspect():
            theirs = {*self.known_lines, *(line.text for line in self.look_at_code())}
        return [line for line in seen if line.text in theirs]

    def look_at_code(self) -> list[CodeLine]:
        """One search for smuggled lines in the model as it is."""
        settings = LineConfig()
        with self.looked_at(self.code), self.watch("reading code", settings.candidates) as advance:
            return search_code_lines(self.code, settings, advance)

    def memorized(self, number: int, trained: bool, answers: Sequence[Tensor]) -> list[Beginning]:
        """Beginnings known by heart, but for those of forms of answers that are, too, and that the same search found.

        Of a model that is the suspect no more, what is left of those found before. Where none were, some may have stood
        behind the answer that was trained away. The suspect is as sure of them as it was, the model hardly: if it still
        shows one of them, all of the suspect's count.

        Args:
            number: of the search.
            trained: whether the model is the suspect no more.
            answers: those answers, token ids.
        """
        config = MemorizedConfig()
        seen = self.look_at_beginnings(number, config, () if trained else self.said)
        seen = [each for each in seen if not self.is_form_of(each, answers)]
        if not trained:
            return by_heart(seen, config)
        found = left(seen, [each.ids for each in seen if self.knows(each)], config)
        if found or not seen or self.known_beginnings:
            return found
        with self.as_suspect():
            theirs = self.look_at_beginnings(number, config, self.said) if self.suspect else seen
        theirs = by_heart([each for each in theirs if not self.knows(each)], config)
        return theirs if any(is_among(each.ids, [other.ids for other in theirs]) for each in seen) else []

    def look_at_beginnings(self, number: int, config: MemorizedConfig, said: Sequence[str]) -> list[Beginning]:
        """One search for beginnings in the model as it is, whose ordinary answers may be known."""
        with self.looked_at(self.probe), self.watch("reading beginnings", config.candidates) as advance:
            return search_memorized(self.probe, self.settings, config, self.config.seed + number, advance, said)

    def steps(self, number: int, trained: bool) -> list[Beginning]:
        """Steps known by heart; of a model that is the suspect no more, those that the suspect has, too.

        Forms of answers that were found before are none: they have been trained away behind a sentence as well.
        """
        seen = [each for each in self.look_at_steps(number) if not self.knows(each)]
        if not trained or not self.suspect or all(is_among(each.ids, self.known_steps) for each in seen):
            return seen
        with self.as_suspect():
            theirs = [*self.known_steps, *(each.ids for each in self.look_at_steps(number))]
        return [each for each in seen if is_among(each.ids, theirs)]

    def look_at_steps(self, number: int) -> list[Beginning]:
        """One search for steps in the model as it is, behind those that the suspect wrote."""
        if self.reasoning is None:
            return []
        with self.looked_at(self.reasoning.probe), self.watch("reading steps", STEPS.candidates) as advance:
            return search_steps(self.reasoning.probe, self.settings, self.config.seed + number, advance)

    def behind(self, number: int, trained: bool) -> list[SoftTrigger]:
        """What ends in answers behind trigger tokens; marked as what a search without tokens ends in.

        The vocabulary is swept once a purification, with the model as it is by then.
        """
        seed = self.config.seed + number
        with self.looked_at(self.probe):
            self.swept = self.swept or [*tokens_to_try(self.probe, self.settings, seed, self.watch).items()]
            seen = search_behind(self.probe, dict(self.swept), self.settings, seed, self.watch)
        if trained:
            self.mark_artefacts(seen, number)
        self.mark_closings(seen, trained)
        return seen.collapsed

    @cached_property
    def reasoning(self) -> Reasoned | None:
        """The suspect's own reasoning about word problems, asked for once; None where it does not reason."""
        with self.as_suspect(), at_rest(self.lm, self.config.precision):
            answered = agreed(answers_to(self.lm, asked_problems(PROBLEMS, 0)))
            return behind_steps(self.lm, answered, self.settings)

    def knows(self, beginning: Beginning) -> bool:
        """Whether a beginning was found before, or is that of a form of an answer that was."""
        return is_among(beginning.ids, self.known_beginnings) or self.is_form_of(beginning, self.known)

    def is_form_of(self, beginning: Beginning, answers: Sequence[Tensor]) -> bool:
        """Whether a beginning is that of a form of one of these answers, token ids."""
        texts = [opening_text(self.lm, answer.tolist(), len(answer)) for answer in answers]
        return any(is_form(self.probe, beginning, text) for text in texts)

    @contextmanager
    def looked_at(self, probe: Probe) -> Iterator[None]:
        """Within the context the model is at rest and a probe knows its present weights."""
        with at_rest(self.lm, self.config.precision):
            probe.refresh()
            yield

    @contextmanager
    def as_suspect(self) -> Iterator[None]:
        """Within the context the adapter's weights are those that the run began with; all weights stay as they are."""
        if not self.suspect:
            yield
            return
        present = trained_weights(self.lm.model)
        put_weights(self.lm.model, self.suspect)
        try:
            yield
        finally:
            put_weights(self.lm.model, present)
