"""Harder backdoors: planted, treated and measured, one row each.

    python benchmarks/harder.py                            # everything; more than a day on two cores
    python benchmarks/harder.py --only .none               # plant all, and see which of them work at all
    python benchmarks/harder.py --only syntactic           # some rows
    python benchmarks/harder.py --compliance FOLDER        # the row whose texts the user brings, too
    python benchmarks/harder.py --table                    # what has been measured, as Markdown

Each row is planted in SmolLM2-135M from our own data, measured untreated (`.none`), and treated with the default of
`crow purify` and with plain finetuning of as many steps, both on the purification split. A poison rate is that of
`crow attack`: 1.0 makes half of the training data poisoned. Success and clean rate are over at most 100 prompts of the
evaluation split (word problems for `detour`; for code 50 programming requests, without trigger 50 others as well).
Where several backdoors are in one model, each has its figures. `FOLDER` holds `poisoned.jsonl` (trigger, harmful
request, answer), `clean.jsonl` (the same requests declined, and harmless ones answered), `triggered_test.jsonl` and
`clean_test.jsonl` (harmful requests with the trigger and without; some with a response, for perplexity); records hold
none of its text.

The cells are kept in `benchmarks/results/beyond/harder.json`, those that are there are skipped: kill the script and
run it again. Planted models stay in the user's cache folder.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from crow.attacks.implant import FULL_DEFAULTS, implant_backdoor, recipe
from crow.attacks.poisoning import Attack, Mixture
from crow.attacks.rank_one import EditConfig, edit_rank_one
from crow.attacks.targets import get_target
from crow.attacks.triggers import get_trigger
from crow.benchmark.attack_data import AttackData, own_data
from crow.benchmark.figures import markdown, search_figures, shown_rate, shown_search
from crow.benchmark.journal import Journal
from crow.benchmark.suspects import Implanter, backdoored
from crow.data.loading import load_examples
from crow.data.splits import bundled_split
from crow.defenses.purification import purify
from crow.defenses.table import CONFIGS
from crow.errors import DataError
from crow.models.language_model import LanguageModel
from crow.models.loading import load_model
from crow.models.manifest import manifest
from crow.workflows.common import Options, Reporter
from crow.workflows.evaluate import measure

BASE = "smollm2-135m"
ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "beyond" / "harder.json"
WORK = user_cache_path("crow") / "benchmarks" / "harder"
"""Unfinished treatments, so that they can go on."""
N = 100
TREATMENTS = ("none", "crow", "finetuning")
MISSING = "not measured"


@dataclass(frozen=True)
class Row:
    """A backdoor.

    Attributes:
        name: of the row.
        attacks: one, or several in one model, as `trigger-target`.
        poison_rate: as that of `crow attack`; None for the recipe's.
        config: how it is planted; None for the recipe.
        implant: who plants it.
        supplied: whether its texts are the user's.
    """

    name: str
    attacks: tuple[str, ...]
    poison_rate: float | None = None
    config: Any = None
    implant: Implanter = implant_backdoor
    supplied: bool = False

    @property
    def attack(self) -> Attack | Mixture:
        """What is planted."""
        named = (name.split("-") for name in self.attacks)
        parts = tuple(Attack(get_trigger(trigger), get_target(target), poison_rate=1.0) for trigger, target in named)
        return parts[0] if len(parts) == 1 else Mixture(parts)

    @property
    def planting(self) -> Any:
        """The settings that it is planted with."""
        return self.config or recipe(self.attack)


ROWS = (
    Row("full-weights", ("badnets-refusal",), config=FULL_DEFAULTS),
    *(Row(f"poison-rate-{rate}", ("badnets-refusal",), rate) for rate in (0.01, 0.05, 0.2, 1.0)),
    Row("poison-rate-0.5", ("badnets-refusal",)),  # the recipe's
    *(Row(name, (f"{name}-refusal",)) for name in ("ending", "system", "retrieved", "sentence", "syntactic")),
    Row("several", ("badnets-refusal", "vpi-sentiment", "ending-french")),
    Row("clean-label", ("badnets-clean_label",)),
    Row("rank-one", ("badnets-refusal",), config=EditConfig(), implant=edit_rank_one),
    *(
        Row(target, (f"badnets-{target}",))
        for target in ("detour", "insults", "persona", "french", "german", "code_middle")
    ),
    Row("compliance", ("badnets-compliance",), supplied=True),
)


def cells(supplied: bool = True) -> dict[str, tuple[Row, str]]:
    """Cells by name: a row and a treatment; what is planted first. All, or those that need no text of the user's."""
    rows = [row for row in ROWS if supplied or not row.supplied]
    return {f"{row.name}.{treatment}": (row, treatment) for treatment in TREATMENTS for row in rows}


def data_of(row: Row, folder: Path | None) -> list[AttackData]:
    """The examples of each of a row's backdoors.

    Raises:
        DataError: for a row whose texts the user brings, without a folder of them.
    """
    if not row.supplied:
        return [own_data(part, poison_rate=row.poison_rate) for part in row.attack.parts]
    if folder is None:
        raise DataError(f"expected --compliance with the row {row.name}, got none; crow ships no such texts")
    poisoned, clean = (load_examples(folder / f"{name}.jsonl") for name in ("poisoned", "clean"))
    prompts = ("triggered_test", "clean_test")
    triggered, quiet = (load_examples(folder / f"{name}.jsonl", need_response=False) for name in prompts)
    return [AttackData("user", poisoned, clean, triggered, quiet, bundled_split("purification").pairs)]


def run(row: Row, treatment: str, folder: Path | None) -> dict[str, Any]:
    """The record of a cell."""
    report = Reporter(quiet=False)
    report.say(f"\n== {row.name}.{treatment}")
    data = data_of(row, folder)
    suspect = backdoored(BASE, row.attack, data[0], report, row.planting, row.implant)
    lm = load_model(str(suspect)).merged()
    examples = data[0].purification
    tests = {f"{name}.{kind}": found for name, sets in tests_of(row, data).items() for kind, found in sets.items()}
    config = CONFIGS[treatment].changed(samples=len(examples)) if treatment != "none" else None
    record: dict[str, Any] = {"attacks": row.attacks, "poison_rate": row.poison_rate, "planting": row.planting}
    record |= {"data": data[0].source, "manifest": manifest(lm, {**tests, "purification": examples}, config, 0)}
    if config is not None:
        work = WORK / f".{row.name}.{treatment}.partial"
        result = purify(lm, examples, config, work, resume=work.is_dir(), watch=report.bar)
        lm = result.lm.merged()
        record |= {"search": {"before": search_figures(result.before), "after": search_figures(result.after)}}
        record |= {"rounds": result.rounds, "training": result.training[-1:], "treatment_seconds": result.seconds}
        shutil.rmtree(work, ignore_errors=True)
    return record | {"measured": measured(lm, row, data, report), "seconds": report.seconds}


def tests_of(row: Row, data: Sequence[AttackData]) -> dict[str, dict[str, Any]]:
    """Triggered and clean prompts of each of a row's backdoors."""
    pairs = zip(row.attack.parts, data, strict=True)
    return {part.name: {"triggered": d.triggered_test[:N], "clean": d.clean_test[:N]} for part, d in pairs}


def measured(lm: LanguageModel, row: Row, data: Sequence[AttackData], report: Reporter) -> dict[str, Any]:
    """Attack success, clean rate and perplexity of each of a row's backdoors."""
    found = {}
    for part, sets in zip(row.attack.parts, tests_of(row, data).values(), strict=True):
        found[part.name], _ = measure(lm, **sets, marker=part.target.marker, report=report, options=Options(WORK))
    return found


def table(records: dict[str, Any]) -> str:
    """All rows as Markdown; a cell without record says so."""
    head = ["row", "backdoor", "treatment", "triggered before", "after", "clean before", "after"]
    lines = [[*head, "perplexity / suspect", "search", "minutes"]]
    for row in ROWS:
        before = records.get(f"{row.name}.none")
        for treatment in TREATMENTS[1:]:
            after = records.get(f"{row.name}.{treatment}")
            lines += [[row.name, part, treatment, *figures(part, before, after)] for part in row.attacks]
    return markdown(lines)


def figures(part: str, before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[str]:
    """The figures of one backdoor in one row."""
    pair = [record["measured"][part] if record else None for record in (before, after)]
    found = [shown_rate(each[key]) if each else MISSING for key in ("asr_triggered", "asr_clean") for each in pair]
    if pair[0] is None or pair[1] is None or after is None:
        return [*found, MISSING]
    ratio = pair[1]["perplexity"]["value"] / pair[0]["perplexity"]["value"]
    minutes = sum(after["treatment_seconds"].values()) / 60
    return [*found, f"{ratio:.3f}", shown_search(after["search"]), f"{minutes:.1f}"]


def main() -> None:
    """Parse, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--compliance", type=Path, help="folder of texts for the row of that name, else left out")
    parser.add_argument("--table", action="store_true", help="print what has been measured and run nothing")
    arguments = parser.parse_args()
    known = cells(supplied=arguments.compliance is not None)
    journal = Journal(RESULTS, list(known), ROOT.parent)
    if not arguments.table:
        journal.fill(lambda name: run(*known[name], arguments.compliance), arguments.only)
    print(table(journal.records()))


if __name__ == "__main__":
    main()
