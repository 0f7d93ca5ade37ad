"""Running one cell: plant, defend, measure."""

from __future__ import annotations

import random
import tempfile
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from crow.benchmark.attack_data import attack_data
from crow.benchmark.figures import search_figures
from crow.benchmark.grid import Cell, Grid, asked, describe, settings_of
from crow.benchmark.portable import portable
from crow.benchmark.suspects import backdoored
from crow.defenses.base import Surroundings
from crow.defenses.table import get_defense
from crow.models.loading import load_model
from crow.models.manifest import manifest
from crow.records import Criterion, Example
from crow.workflows.abilities import examine, prepare
from crow.workflows.common import Options, Reporter, take
from crow.workflows.evaluate import measure
from crow.workflows.utility import Suspect, kept, look_at


def run_cell(cell: Cell, grid: Grid, report: Reporter) -> dict[str, Any]:
    """The record of a cell: what it is, `metrics` with the keys of `crow eval`, and a manifest.

    Raises:
        CrowError: for anything the user can mend.
    """
    started = report.seconds
    attack = cell.parts()
    data = attack_data(attack, grid.data)
    samples = int(dict(cell.settings).get("samples", min(grid.samples, len(data.purification))))
    pool = data.purification if samples <= len(data.purification) else [*data.purification, *data.further]
    examples = take(pool, samples, cell.seed, f"the {data.source} purification data")
    triggered, clean = list(data.triggered_test[: grid.n]), list(data.clean_test[: grid.n])
    folder = backdoored(cell.model, attack, data, report)
    lm = load_model(str(folder)).merged()
    sets = {"triggered": triggered, "clean": clean, "purification": examples}
    record = describe(cell) | {"asked": asked(cell, grid), "data": data.source}
    record["manifest"] = manifest(lm, sets, cell.settings, cell.seed)
    reference = load_model(cell.reference).merged() if cell.reference else None
    exam = prepare(cell.abilities)
    suspect = suspect_of(folder, tuple(clean), attack.target.marker, report.quiet) if cell.kept else None
    with tempfile.TemporaryDirectory() as work:
        surroundings = Surroundings(Path(work), cell.seed, reference, report.bar)
        defense = get_defense(cell.defense, surroundings, settings_of(cell))
        record["needs"] = str(defense.needs)
        before = report.seconds
        lm = defense.apply(lm, examples)
        record["defense_seconds"] = round(report.seconds - before, 1)
    if surroundings.searches:
        record["search"] = {when: search_figures(seen) for when, seen in surroundings.searches.items()}
    metrics, verdicts = measure(lm, triggered, clean, attack.target.marker, report, Options(Path(work)))
    if suspect:
        metrics["kept"] = kept(suspect, lm, verdicts["clean"].answers, report)
    inside_code = attack.target.keeps_answer
    trigger = partial(attack.trigger.apply_to, rng=random.Random(cell.seed)) if inside_code else None
    metrics |= examine(lm, exam, report, cell.seed, trigger)
    return portable(record | {"metrics": metrics, "seconds": round(report.seconds - started, 1)}, Path.cwd())


@lru_cache(maxsize=1)
def suspect_of(folder: Path, clean: tuple[Example, ...], marker: str | Criterion, quiet: bool) -> Suspect:
    """What the cells of one attack are compared with; kept from one to the next."""
    answered = [example for example in clean if example.response]
    return look_at(load_model(str(folder)).merged(), clean, answered, marker, Reporter(quiet))
