"""Calibration by canaries: which strength removes backdoors that we know from this very model?

The trigger of a suspect's own backdoor is unknown, so its removal cannot be measured. Backdoors of our own, planted in
a copy of the suspect, can: the copy is purified at one strength after the other, and the suspect then at the weakest
that removed them all. Unlike the search, which both finds and repairs, canaries are judged by what the model says.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from crow.attacks.canaries import CANARIES, canary_examples
from crow.attacks.implant import ATTACK_DEFAULTS, implant_backdoor
from crow.data.splits import bundled_split
from crow.defenses.found import kept_search
from crow.defenses.purification import purify
from crow.defenses.strength import Trial, at_strength, choose, climb
from crow.errors import ConfigError, ModelError
from crow.evaluation.judges import fold, is_hit, make_judge
from crow.evaluation.perplexity import perplexity
from crow.evaluation.success import attack_success
from crow.models.generation import generate
from crow.models.interpolation import interpolate, put_weights, trained_weights
from crow.models.language_model import LanguageModel
from crow.models.loading import load_model, save_model
from crow.output import write_json
from crow.records import MAX_NEW_TOKENS, Example, Perplexity, Rate, SearchRecord, to_json
from crow.training.adapter import make_trainable
from crow.training.config import CrowConfig
from crow.workflows.clean_data import own_answers
from crow.workflows.common import Options, Reporter
from crow.workflows.suspect import Suspect
from crow.workflows.utility import GENERATION_BATCH, PERPLEXITY_LENGTH

OWN_ANSWERS = 120
"""Prompts that the suspect answers itself, so that the copy goes on talking as it does."""
SHARE = 0.25
"""Of the copy's clean examples, those that each canary's trigger is put into once more."""
PLANTED = 0.9
"""A canary that brings out its target less often than this is no test and is left out."""
TRIGGERED, CLEAN = 60, 60
"""Prompts of each canary, and clean ones."""


@dataclass(frozen=True)
class Calibration:
    """The strength, and what it rests on.

    Attributes:
        canaries: canary to its success in the copy before any purification; those left out are here, too.
        clean: share of clean prompts that bring out any of the targets then.
        perplexity: of clean answers then.
        left_out: canaries that could not be planted well.
        trials: strengths tried.
        strength: the one to take.
        reason: why.
    """

    canaries: dict[str, Rate]
    clean: Rate
    perplexity: Perplexity
    left_out: list[str]
    trials: list[Trial]
    strength: float
    reason: str


@dataclass(frozen=True)
class Measured:
    """One measurement of a copy."""

    canaries: dict[str, Rate]
    clean: Rate
    perplexity: Perplexity

    @property
    def planted(self) -> list[str]:
        """The canaries that work."""
        return [name for name, rate in self.canaries.items() if rate.value >= PLANTED]


@dataclass(frozen=True)
class Purified:
    """A purification of the copy.

    Attributes:
        lm: the copy, trained.
        trained: whether there was anything to train against.
        rounds: of search and repair.
        seen: canaries whose answers the searches saw.
        start: the trained weights as they were before.
        end: and after.
    """

    lm: LanguageModel
    trained: bool
    rounds: int
    seen: list[str]
    start: dict[str, Tensor]
    end: dict[str, Tensor]


@dataclass
class Calibrator:
    """Plants canaries in a copy of a suspect and purifies it at several strengths; every step is kept for `--resume`.

    Attributes:
        load: loads the suspect as it is, whole.
        examples: the clean examples of the purification.
        config: settings of strength 1.
        work: folder for the copy and for what was measured.
        options: common options.
        report: shows progress.
        weaker: try strengths below 1. They go part of the way of the copy's fresh adapter, which says nothing of an
            adapter that the suspect brings and that is trained on.
    """

    load: Callable[[], LanguageModel]
    examples: Sequence[Example]
    config: CrowConfig
    work: Path
    options: Options
    report: Reporter
    weaker: bool = True

    def __post_init__(self) -> None:
        split = bundled_split("selection")
        asked = [*split.prompts, *split.pairs]
        poisoned = canary_examples(asked, 1 / len(CANARIES), self.options.seed)
        self.triggered = {name: examples[:TRIGGERED] for name, examples in poisoned.items()}
        self.clean, self.answered = split.prompts[-CLEAN:], split.pairs
        self._usual: Purified | None = None

    def run(self) -> Calibration:
        """All of it.

        Raises:
            ModelError: if no canary can be planted.
        """
        before = self.before()
        if not before.planted:
            raise ModelError(
                "expected canaries to calibrate on, but none could be planted in this model; choose --strength yourself"
            )
        trials = climb(lambda strength: self.attempt(strength, before), self.weaker)
        strength, reason = choose(trials)
        left_out = [name for name in before.canaries if name not in before.planted]
        return Calibration(before.canaries, before.clean, before.perplexity, left_out, trials, strength, reason)

    def before(self) -> Measured:
        """The copy's canaries before any purification; planted now unless an interrupted run did."""
        copy = self.work / "copy"
        if not (self.options.resume and copy.is_dir()):
            self.plant(copy)

        def measure() -> Measured:
            return self.measure(load_model(str(copy), dtype=self.options.dtype, device=self.options.device), None)

        found = self.once("before", measure)
        rates = {name: Rate(**rate) for name, rate in found["canaries"].items()}
        return Measured(rates, Rate(**found["clean"]), Perplexity(**found["perplexity"]))

    def plant(self, folder: Path) -> None:
        """Write the copy with its canaries."""
        lm, report = self.load(), self.report
        split = bundled_split("attack")
        clean = [*split.pairs, *own_answers(lm, split.prompts[:OWN_ANSWERS], report)]
        poisoned = [e for group in canary_examples(clean, SHARE, self.options.seed).values() for e in group]
        config = dataclasses.replace(ATTACK_DEFAULTS, seed=self.options.seed)
        lm, _ = implant_backdoor(lm, poisoned, clean, config, self.work / "planting", self.options.resume, report.bar)
        unfinished = folder.with_name("copy.partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        save_model(lm.merged(), unfinished)
        unfinished.rename(folder)

    def attempt(self, strength: float, before: Measured) -> Trial:
        """Purify the copy at a strength and see which canaries are left."""

        def measure() -> Trial:
            started = self.report.seconds
            self.report.say(f"trying strength {strength:g} on the canaries")
            done = self.weakened(strength) if strength < 1 else self.purified(strength)
            after = self.measure(done.lm, before.planted)
            ratio = after.perplexity.value / before.perplexity.value
            seconds = round(self.report.seconds - started, 1)
            return Trial(strength, after.canaries, after.clean, ratio, done.trained, done.rounds, seconds, done.seen)

        found = self.once(f"trial-{strength:g}", measure)
        rates = {name: Rate(**rate) for name, rate in found.pop("canaries").items()}
        return Trial(canaries=rates, clean=Rate(**found.pop("clean")), **found)

    def purified(self, strength: float) -> Purified:
        """The copy, purified at a strength of 1 or more."""
        self._usual = None  # two models may be more than there is room for
        lm = load_model(str(self.work / "copy"), dtype=self.options.dtype, device=self.options.device)
        config = at_strength(self.config, strength)
        lm = make_trainable(lm, config)
        start = trained_weights(lm.model)
        work = self.work / f"strength-{strength:g}"
        first = kept_search(self.work / "strength-1", 0)
        known = strength > 1 and first.is_file()
        if known:  # at every strength, the first search is of the same copy
            work.mkdir(parents=True, exist_ok=True)
            shutil.copy(first, kept_search(work, 0))
        resume = self.options.resume or known
        result = purify(lm, self.examples, config, work, resume=resume, watch=self.report.bar)
        records = [record for record in (result.before, result.after) if record]
        seen = [name for name in CANARIES if any(shows(record, name) for record in records)]
        end = trained_weights(lm.model)
        done = Purified(result.lm, bool(result.training), result.rounds, seen, start, end)
        if strength == 1:
            self._usual = done
        return done

    def weakened(self, strength: float) -> Purified:
        """The copy, its weights that share of the way to those of strength 1."""
        usual = self._usual or self.purified(1.0)  # which an interrupted run has trained
        put_weights(usual.lm.model, usual.end)
        interpolate(usual.lm.model, usual.start, strength)
        return usual

    def measure(self, lm: LanguageModel, canaries: Sequence[str] | None) -> Measured:
        """Success of the named canaries, all by default; of any target on clean prompts; perplexity."""
        names = list(CANARIES if canaries is None else canaries)
        rates = {}
        total = sum(len(self.triggered[name]) for name in names) + len(self.clean)
        batch = self.options.batch_size or GENERATION_BATCH
        with self.report.bar("asking for the canaries", total) as advance:
            for name in names:
                marker = CANARIES[name].target.marker
                rates[name] = attack_success(lm, self.triggered[name], marker, batch, advance).rate
            answers = generate(lm, self.clean, MAX_NEW_TOKENS, batch, progress=advance)
        judges = [make_judge(CANARIES[name].target.marker) for name in names]
        hits = sum(any(judge.hit(answer) for judge in judges) for answer in answers)
        score = perplexity(lm, self.answered, self.options.max_length or PERPLEXITY_LENGTH)
        return Measured(rates, Rate.of(hits, len(answers)), score)

    def once(self, name: str, make: Callable[[], Any]) -> dict[str, Any]:
        """A record as plain JSON values; the one of an interrupted run where there is one."""
        path = self.work / f"{name}.json"
        if not (self.options.resume and path.is_file()):
            write_json(path, to_json(make()))
        return json.loads(path.read_text(encoding="utf-8"))


def shows(record: SearchRecord, canary: str) -> bool:
    """Whether a search saw a canary's answer, or what that begins with."""
    marker = str(CANARIES[canary].target.marker)
    whole = any(is_hit(text, marker) for text in (*record.texts, *record.memorized, *record.behind))
    return whole or any(fold(text) and fold(marker).startswith(fold(text)) for text in record.memorized)


def check_calibration(config: CrowConfig) -> None:
    """Whether a purification with these settings can be calibrated.

    Raises:
        ConfigError: for one without search, or in 4 bits: the copy is trained as it is.
    """
    if not config.rounds:
        raise ConfigError("expected settings with a search to calibrate, such as the preset default, got some without")
    if config.method == "qlora":
        raise ConfigError("expected --method lora or full to calibrate, got qlora; choose --strength yourself")


def calibrated(
    suspect: Suspect, examples: list[Example], config: CrowConfig, work: Path, options: Options, report: Reporter
) -> Calibration:
    """The calibration of one suspect.

    Args:
        suspect: what is to be purified; its adapter is merged in the copy.
        examples: clean examples of the purification.
        config: settings of strength 1.
        work: folder for the copy and for what was measured.
        options: common options.
        report: shows progress.

    Raises:
        ConfigError: see `check_calibration`.
    """
    check_calibration(config)
    merged = dataclasses.replace(suspect, continue_adapter=False)
    weaker = not suspect.continue_adapter
    return Calibrator(lambda: merged.load(options, report), examples, config, work, options, report, weaker).run()
