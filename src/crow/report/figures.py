"""The figures of the pages.

Figures hold numbers and crow's own labels only, never text of a model, so the page may insert them
as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from crow.records import SearchRecord
from crow.report.drawing import GRID, INK, PANEL, SERIES_A, SERIES_B, Picture, draw, plain_decades, scale
from crow.report.reading import as_mapping, as_number, as_numbers, known_numbers

_SIDES = ("before", "after")
_LINES: Mapping[str, Mapping[str, Any]] = {
    "clean": {"color": SERIES_A, "linestyle": "-", "marker": "o"},
    "triggered": {"color": SERIES_B, "linestyle": "--", "marker": "s"},
}
_MORE_LINES: Sequence[Mapping[str, Any]] = (
    {"color": SERIES_A, "linestyle": ":", "marker": "^"},
    {"color": SERIES_B, "linestyle": "-.", "marker": "v"},
    {"color": INK, "linestyle": "-", "marker": "x"},
    {"color": INK, "linestyle": "--", "marker": "+"},
)
TERMS = {
    "loss": "Total loss",
    "language_modeling": "Language modeling",
    "self_distillation": "Agreement with the suspect",
    "consistency": "Consistency",
    "adversarial": "Adversarial",
}


@dataclass(frozen=True)
class DotRow:
    """One row of a dot chart: crow's own label, the values, and whether they are marked by colour and shape."""

    label: str
    values: Sequence[float]
    marked: bool = False


def loss_figures(training: Sequence[Any]) -> list[Picture]:
    """One panel for each loss term that some step recorded, over the training steps."""
    steps = [as_mapping(entry) for entry in training]
    numbered = [as_number(step.get("step")) for step in steps]
    xs = [float(place) if at is None else at for place, at in enumerate(numbered, start=1)]
    pictures = []
    for key, heading in TERMS.items():
        ys = as_numbers([step.get(key) for step in steps])
        known = known_numbers(ys)
        if known:
            description = (
                f"Line chart of {heading.lower()} over {len(known)} training steps, "
                f"from {known[0]:.3g} at the first to {known[-1]:.3g} at the last; highest {max(known):.3g}."
            )
            pictures.append(draw(key, heading, description, lambda axes, ys=ys: _plot_loss(axes, xs, ys)))
    return pictures


def curve_figures(curves: Any) -> list[Picture]:
    """Layer consistency before and after, clean against triggered prompts, on one common scale."""
    table = {str(key): as_numbers(values) for key, values in as_mapping(curves).items()}
    sides = {side: {kind: table.get(f"{kind}_{side}", []) for kind in ("clean", "triggered")} for side in _SIDES}
    shown = {side: {kind: ys for kind, ys in kinds.items() if known_numbers(ys)} for side, kinds in sides.items()}
    everything = [y for kinds in shown.values() for ys in kinds.values() for y in known_numbers(ys)]
    pictures = []
    for side, kinds in shown.items():
        if kinds:
            ranges = "; ".join(
                f"{kind} prompts from {min(known_numbers(ys)):.3g} to {max(known_numbers(ys)):.3g}"
                for kind, ys in kinds.items()
            )
            layers = max(len(ys) for ys in kinds.values())
            description = f"Line chart of layer consistency over {layers} layers {side} training: {ranges}."
            heading = f"{side.capitalize()} training"
            pictures.append(
                draw(
                    f"curves-{side}",
                    heading,
                    description,
                    lambda axes, kinds=kinds: _plot_curves(axes, kinds, everything),
                )
            )
    return pictures


def layer_figure(name: str, heading: str, unit: str, series: Mapping[str, Sequence[float]]) -> Picture | None:
    """One panel with a line for every series over the layers; None without any.

    Args:
        name: keeps its element ids apart from others'.
        heading: above it.
        unit: of the vertical axis.
        series: label to one value a layer; at most four.
    """
    numbers = {label: as_numbers(values) for label, values in series.items()}
    known = {label: known_numbers(values) for label, values in numbers.items()}
    shown = {label: values for label, values in numbers.items() if known[label]}
    if not shown:
        return None
    ranges = "; ".join(f"{label} from {min(known[label]):.3g} to {max(known[label]):.3g}" for label in shown)
    layers = max(len(values) for values in shown.values())
    description = f"Line chart of {heading[0].lower()}{heading[1:]} over {layers} layers: {ranges}."
    everything = [value for label in shown for value in known[label]]
    return draw(name, heading, description, lambda axes: _plot_curves(axes, shown, everything, unit))


def identity_figure(before: SearchRecord | None, after: SearchRecord | None) -> Picture | None:
    """What share of the prompts agreed at the end of every start, before and after on one axis; None if unknown."""
    searches = (("before", before), ("after", after))
    rows = [DotRow(label, search.identities, label == "before") for label, search in searches if search]
    rows = [row for row in rows if row.values]
    if not rows:
        return None
    ranges = "; ".join(f"{row.label} training, {len(row.values)} starts, highest {max(row.values):.2f}" for row in rows)
    description = f"Dot chart of the share of prompts that agreed on one answer, for each start: {ranges}."
    heading = "Share of prompts that agreed, by start"
    return _draw_dots("identities", heading, description, "share of prompts with the same answer", rows, True)


def dot_figure(name: str, heading: str, unit: str, rows: Sequence[DotRow], shares: bool = False) -> Picture | None:
    """One dot a value, in a row for every series; None without any.

    Args:
        name: keeps its element ids apart from others'.
        heading: above it.
        unit: of the horizontal axis.
        rows: from top to bottom.
        shares: whether values are shares, on an axis from 0 to 1.
    """
    shown = [row for row in rows if row.values]
    if not shown:
        return None
    ranges = "; ".join(
        f"{row.label}, {len(row.values)} from {min(row.values):.3g} to {max(row.values):.3g}" for row in shown
    )
    description = f"Dot chart of {heading[0].lower()}{heading[1:]}: {ranges}."
    return _draw_dots(name, heading, description, unit, shown, shares)


def _draw_dots(name: str, heading: str, description: str, unit: str, rows: Sequence[DotRow], shares: bool) -> Picture:
    height = 0.9 + 0.4 * len(rows)
    return draw(name, heading, description, lambda axes: _plot_dots(axes, unit, rows, shares), height)


def tradeoff_figure(name: str, attack: str, points: Sequence[tuple[float, float, str]], untreated: str) -> Picture:
    """Attack success against utility, one point a defense, joined to its name.

    Args:
        name: keeps its element ids apart from others'.
        attack: its heading.
        points: (perplexity relative to the suspect, attack success, defense).
        untreated: the name of no defense at all.
    """
    listed = "; ".join(f"{label}: success {success:.2f} at {ratio:.2f}" for ratio, success, label in points)
    description = f"Scatter chart of attack success against perplexity relative to the suspect: {listed}."
    heading = f"Success against perplexity, {attack}"
    height = max(PANEL[1], 0.8 + 0.15 * len(points))
    return draw(name, heading, description, lambda axes: _plot_tradeoff(axes, points, untreated), height)


def ablation_figure(name: str, setting: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> Picture:
    """Attack success over a setting's values, one line for every attack and defense, at most six.

    Args:
        name: keeps its element ids apart from others'.
        setting: what was varied.
        lines: label to (value, attack success).
    """
    shown = dict(list(lines.items())[:6])
    listed = "; ".join(f"{label} from {points[0][1]:.2f} to {points[-1][1]:.2f}" for label, points in shown.items())
    description = f"Line chart of attack success over {setting}: {listed}."
    return draw(name, f"Success by {setting}", description, lambda axes: _plot_ablation(axes, setting, shown))


def strength_figure(points: Sequence[tuple[float, float, float]]) -> Picture:
    """What is left of the canaries and what it costs, over the strength of a purification.

    Args:
        points: (strength, success of the canary that is left most, perplexity relative to the one before).
    """
    listed = "; ".join(f"{left:.2f} left at x {ratio:.3f} with strength {s:g}" for s, left, ratio in sorted(points))
    description = f"Line chart of the canary that is left most, and of perplexity, over strength: {listed}."
    return draw("strength", "Canaries left and cost", description, lambda axes: _plot_strength(axes, sorted(points)))


def _gaps(values: Sequence[float | None]) -> list[float]:
    """The values with NaN, which breaks a line, where one is missing."""
    return [float("nan") if value is None else value for value in values]


def _plot_loss(axes: Axes, xs: Sequence[float], ys: Sequence[float | None]) -> None:
    few = len(xs) <= 40
    axes.plot(xs, _gaps(ys), color=SERIES_A, linewidth=1.4, marker="o" if few else "", markersize=2.5)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    scale(axes, known_numbers(ys))


def _plot_curves(
    axes: Axes, kinds: Mapping[str, Sequence[float | None]], everything: Sequence[float], unit: str = "1 − cosine"
) -> None:
    styles = iter(_MORE_LINES)
    for kind, ys in kinds.items():
        style = _LINES[kind] if kind in _LINES else next(styles)
        axes.plot(range(1, len(ys) + 1), _gaps(ys), label=kind, linewidth=1.4, markersize=2.8, **style)
    axes.set_xlabel("layer")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.legend(loc="best", handlelength=2.6)
    scale(axes, everything)


def _plot_tradeoff(axes: Axes, points: Sequence[tuple[float, float, str]], untreated: str) -> None:
    """The points, their names in a column at the right: most of them lie on each other at 0 and 1."""
    upwards = sorted(points, key=lambda point: (point[1], point[0] if point[1] > 0.5 else -point[0]))
    for place, (ratio, success, label) in enumerate(upwards):
        colour, marker, above = (SERIES_B, "s", 4) if label == untreated else (SERIES_A, "o", 3)
        axes.annotate(
            label,
            (ratio, success),
            xytext=(1.06, (place + 0.5) / len(upwards)),
            textcoords="axes fraction",
            va="center",
            fontsize=7.5,
            arrowprops={"arrowstyle": "-", "color": GRID, "linewidth": 0.8, "relpos": (0, 0.5)},
        )
        axes.plot([ratio], [success], marker, color=colour, markersize=4, zorder=above)
    axes.set_ylim(-0.04, 1.08)
    axes.set_ylabel("attack success")
    axes.set_xlabel("perplexity relative to the suspect")
    if max(ratio for ratio, _, _ in points) > 2:
        axes.set_xscale("log")
        plain_decades(axes.xaxis)


def _plot_ablation(axes: Axes, setting: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    styles = [*_LINES.values(), *_MORE_LINES]
    for (label, points), style in zip(lines.items(), styles, strict=False):
        axes.plot(*zip(*points, strict=True), label=label, linewidth=1.4, markersize=3, **style)
    axes.set_ylim(-0.04, 1.08)
    axes.set_ylabel("attack success")
    axes.set_xlabel(setting)
    axes.legend(loc="best", handlelength=2.6, fontsize=7)


def _plot_strength(axes: Axes, points: Sequence[tuple[float, float, float]]) -> None:
    strengths, left, ratios = zip(*points, strict=True)
    axes.plot(strengths, left, label="canary left most", linewidth=1.4, markersize=3, **_LINES["triggered"])
    axes.plot(strengths, ratios, label="perplexity, relative", linewidth=1.4, markersize=3, **_LINES["clean"])
    axes.set_xlabel("strength")
    axes.set_ylim(-0.04, max(1.12, 1.05 * max(ratios)))
    axes.legend(loc="best", handlelength=2.6)


def _plot_dots(axes: Axes, unit: str, rows: Sequence[DotRow], shares: bool) -> None:
    for height, row in enumerate(reversed(rows)):
        colour, marker = (SERIES_B, "s") if row.marked else (SERIES_A, "o")
        at = [height] * len(row.values)
        axes.plot(row.values, at, marker, color=colour, markersize=5, fillstyle="none", clip_on=False)
    axes.set_yticks(range(len(rows)), [row.label for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    if shares:
        axes.set_xlim(0, 1)
    axes.set_xlabel(unit)
