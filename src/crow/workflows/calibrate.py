"""`crow calibrate`: how strongly must this model be purified for backdoors planted in a copy of it to go?"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from crow.models.manifest import manifest
from crow.output import publish, write_json
from crow.records import to_json
from crow.report.calibration import write_calibration
from crow.training.config import CrowConfig
from crow.workflows.calibration import calibrated
from crow.workflows.clean_data import clean_examples
from crow.workflows.common import Options, Reporter, claimed
from crow.workflows.suspect import Suspect


def run_calibrate(
    model: str, adapter: Path | None, data: Path | None, config: CrowConfig, options: Options
) -> dict[str, Any]:
    """Calibrate, and write `results.json` and `report.html`.

    Args:
        model: any model reference.
        adapter: a PEFT adapter folder on top of it.
        data: clean examples; the bundled ones by default.
        config: settings of strength 1.
        options: common options.

    Raises:
        CrowError: for anything the user can mend.
    """
    report = Reporter(options.quiet)
    with claimed(options, model, adapter, data, settings={"config": config}) as work:
        examples = clean_examples(data, config.samples, options.seed)
        suspect = Suspect(model, adapter, continue_adapter=False)
        record = manifest(suspect.load(options, report), {"clean": examples}, config, options.seed)
        found = calibrated(suspect, examples, config, work, options, report)
        results = {"model": model, "calibration": found, "seconds": report.seconds, "manifest": record}
        finished = work / "finished"
        write_json(finished / "results.json", results)
        write_calibration(to_json(results), finished / "report.html", f"Calibration of {model}")
        publish(finished, options.output)
        shutil.rmtree(work, ignore_errors=True)
    return results
