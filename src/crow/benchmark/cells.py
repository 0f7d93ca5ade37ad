"""Running one cell: plant, defend, measure."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from crow.benchmark.attack_data import attack_data
from crow.benchmark.grid import Cell, Grid, describe, settings_of
from crow.benchmark.portable import portable
from crow.benchmark.suspects import backdoored
from crow.defenses.base import Surroundings
from crow.defenses.table import get_defense
from crow.models.loading import load_model
from crow.models.manifest import manifest
from crow.workflows.common import Options, Reporter, take
from crow.workflows.evaluate import measure


def run_cell(cell: Cell, grid: Grid, report: Reporter) -> dict[str, Any]:
    """The record of a cell: what it is, `metrics` with the keys of `crow eval`, and a manifest.

    Raises:
        CrowError: for anything the user can mend.
    """
    started = report.seconds
    attack = cell.parts()
    data = attack_data(attack, grid.data)
    samples = int(dict(cell.settings).get("samples", min(grid.samples, len(data.purification))))
    examples = take(data.purification, samples, cell.seed, f"the {data.source} purification data")
    triggered, clean = list(data.triggered_test[: grid.n]), list(data.clean_test[: grid.n])
    folder = backdoored(cell.model, attack, data, report)
    lm = load_model(str(folder)).merged()
    sets = {"triggered": triggered, "clean": clean, "purification": examples}
    record = describe(cell) | {"data": data.source, "manifest": manifest(lm, sets, cell.settings, cell.seed)}
    reference = load_model(cell.reference).merged() if cell.reference else None
    with tempfile.TemporaryDirectory() as work:
        surroundings = Surroundings(Path(work), cell.seed, reference, report.bar)
        defense = get_defense(cell.defense, surroundings, settings_of(cell))
        record["needs"] = str(defense.needs)
        before = report.seconds
        lm = defense.apply(lm, examples)
        record["defense_seconds"] = round(report.seconds - before, 1)
    metrics, _ = measure(lm, triggered, clean, attack.target.marker, report, Options(Path(work)))
    return portable(record | {"metrics": metrics, "seconds": round(report.seconds - started, 1)}, Path.cwd())
