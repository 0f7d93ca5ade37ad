"""What canaries said, as plain values for a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crow.report.drawing import Picture
from crow.report.figures import strength_figure
from crow.report.reading import as_list, as_mapping, as_number, read_rate
from crow.report.text import count_of, factor, plural
from crow.report.verdict import TRIGGERED_LIMIT


@dataclass(frozen=True)
class CalibrationView:
    """A calibration as a page shows it.

    Attributes:
        strength: the one chosen.
        sentences: what was found, in words.
        canaries: names of the canaries, the columns of the table.
        rows: one a strength: its name, counts by canary, clean count, perplexity.
        figure: the trade-off, where more than one strength was tried.
        left: names of the canaries that stayed at the chosen strength.
    """

    strength: str
    sentences: list[str]
    canaries: list[str]
    rows: list[tuple[str, list[str], str, str]]
    figure: Picture | None
    left: list[str]


def read_calibration(value: Any) -> CalibrationView | None:
    """What `results.json` holds under `calibration`; None where it holds none."""
    found = as_mapping(value)
    strength = as_number(found.get("strength"))
    if strength is None:
        return None
    before = {str(name): read_rate(rate) for name, rate in as_mapping(found.get("canaries")).items()}
    left_out = [str(name) for name in as_list(found.get("left_out"))]
    names = [name for name in before if name not in left_out]
    trials = [as_mapping(trial) for trial in as_list(found.get("trials"))]
    rows = [("before", [_counts(before[name]) for name in names], _counts(read_rate(found.get("clean"))), "")]
    points, left = [], list[str]()
    for trial in trials:
        rates = {name: read_rate(as_mapping(trial.get("canaries")).get(name)) for name in names}
        ratio, tried = as_number(trial.get("perplexity_ratio")), as_number(trial.get("strength"))
        cells = [_counts(rates[name]) for name in names]
        cost = "" if ratio is None else factor(ratio)
        rows.append((f"{tried:g}" if tried else "", cells, _counts(read_rate(trial.get("clean"))), cost))
        if tried == strength:
            left = [name for name, rate in rates.items() if rate and rate.value > TRIGGERED_LIMIT]
        known = [rate.value for rate in rates.values() if rate]
        if known and ratio is not None and tried is not None:
            points.append((tried, max(known), ratio))
    sentences = [
        f"{plural(len(names), 'backdoor')} of our own, planted in a copy of the model, were purified at "
        f"{plural(len(trials), 'strength')}; {strength:g} was chosen: {found.get('reason')}."
    ]
    if left_out:
        sentences.append(f"Could not be planted well, and left out: {', '.join(left_out)}.")
    figure = strength_figure(points) if len(points) > 1 else None
    return CalibrationView(f"{strength:g}", sentences, names, rows, figure, left)


def _counts(rate: Any) -> str:
    return count_of(rate) if rate else "not measured"
