"""What `results.json` says of a purification, read once for the page, the model card and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crow.records import SearchRecord
from crow.report.canaries import CalibrationView, read_calibration
from crow.report.reading import Evaluation, as_mapping, read_evaluation, read_search
from crow.report.scan import scan_label
from crow.report.verdict import Verdict, judge


@dataclass(frozen=True)
class View:
    """The measurements of a run and the verdict they come to; None where something was not done.

    Attributes:
        before: the suspect.
        after: the purified model.
        search_before: the search before any training.
        search_after: the last search of the purification.
        scan: the verdict of `--scan`.
        verified: the search of `--verify`.
        calibration: what canaries said.
        untouched: whether the run left the model as it was.
        verdict: over all of it.
    """

    before: Evaluation
    after: Evaluation
    search_before: SearchRecord | None
    search_after: SearchRecord | None
    scan: str | None
    verified: SearchRecord | None
    calibration: CalibrationView | None
    untouched: bool
    verdict: Verdict


def read_view(results: Mapping[str, Any]) -> View:
    """What there is of a purification in `results`, whatever is missing or malformed."""
    before, after = read_evaluation(results.get("before")), read_evaluation(results.get("after"))
    searches = as_mapping(results.get("search"))
    search_before, search_after = read_search(searches.get("before")), read_search(searches.get("after"))
    scan = scan_label(as_mapping(results.get("scan"))) if results.get("scan") else None
    verified = read_search(as_mapping(results.get("verification")).get("search"))
    calibration = read_calibration(results.get("calibration"))
    untouched = results.get("training") == [] and not (search_before and search_before.edits)
    verdict = judge(before, after, search_before, search_after, scan, verified, untouched)
    return View(before, after, search_before, search_after, scan, verified, calibration, untouched, verdict)
