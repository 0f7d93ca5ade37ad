"""`crow scan`: is this model likely backdoored? Evidence, a verdict, a report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from crow.models.language_model import LanguageModel
from crow.models.manifest import manifest
from crow.output import publish, write_json
from crow.records import to_json
from crow.report.scan import write_scan
from crow.scan.gather import ScanConfig, gather, scan_examples
from crow.scan.verdict import judge
from crow.workflows.common import Options, Reporter, claimed, load

EXIT_CODES = {"no evidence": 0, "suspicious": 1, "inconclusive": 3}
"""Of the process, by verdict; 2 is for errors."""


def run_scan(model: str, adapter: Path | None, config: ScanConfig, options: Options) -> dict[str, Any]:
    """Look at a model from all sides and write `results.json` and `report.html`.

    Args:
        model: any model reference.
        adapter: a PEFT adapter folder on top of it.
        config: settings.
        options: common options.

    Returns:
        `verdict`, `reasons`, `targets`, `triggers` (see `crow.scan.verdict.Finding`), `evidence`, and the usual.

    Raises:
        CrowError: for anything the user can mend.
    """
    report = Reporter(options.quiet)
    with claimed(options, model, adapter, settings={"config": config}) as work:
        lm = load(model, options, report, adapter)
        record = manifest(lm, scan_examples(), config, options.seed)
        results = {
            "model": model,
            "adapter": adapter,
            **scanned(lm, config, work, options, report),
            "seconds": report.seconds,
            "manifest": record,
        }
        finished = work / "finished"
        write_json(finished / "results.json", results)
        write_scan(to_json(results), finished / "report.html", f"Scan of {model}")
        publish(finished, options.output)
        shutil.rmtree(work, ignore_errors=True)
    return results


def scanned(lm: LanguageModel, config: ScanConfig, work: Path, options: Options, report: Reporter) -> dict[str, Any]:
    """Look at a model and judge.

    Args:
        lm: the model, an adapter still attached.
        config: settings.
        work: folder for what is finished; with `options.resume` it is taken from there.
        options: common options.
        report: shows progress.

    Returns:
        `verdict`, `reasons`, `targets`, `triggers` and `evidence`.
    """
    evidence = gather(lm, config, options.seed, work, options.resume, report.bar)
    return {**to_json(judge(evidence, config.thresholds)), "evidence": evidence}
