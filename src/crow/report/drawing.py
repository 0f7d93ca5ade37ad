"""How figures look: inline SVG that follows the page's fonts and its light or dark colours."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Colours of Okabe and Ito, which stay apart for colour-blind readers; replaced by CSS variables.
INK, GRID, SERIES_A, SERIES_B = "#1b1c1d", "#d1d2d3", "#0072b2", "#d55e00"
_VARIABLES = {INK: "var(--ink)", GRID: "var(--grid)", SERIES_A: "var(--series-a)", SERIES_B: "var(--series-b)"}
PANEL = (4.4, 2.5)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "axes.unicode_minus": True,
}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}
_LOG_SPREAD = 10
"""A ratio of largest to smallest value from which an axis is logarithmic."""


@dataclass(frozen=True)
class Picture:
    """A figure of the page: its SVG element, a heading, and a description for who cannot see it."""

    svg: str
    heading: str
    description: str


def draw(name: str, heading: str, description: str, plot: Any, height: float = PANEL[1]) -> Picture:
    """A panel as a picture; `plot` is called with its axes, `name` keeps its element ids apart from others'."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(PANEL[0], height), layout="constrained")
        plot(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    return Picture(_inline(buffer.getvalue()), heading, description)


def _inline(svg: str) -> str:
    """A matplotlib SVG file as an element for HTML: no prolog, fixed size, style sheet, fonts or unused ids."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 aria-hidden="true" focusable="false">', element)
    element = re.sub(r"<style.*?</style>", "", element, flags=re.DOTALL)
    element = re.sub(r"font-family: [^;\"]*;? ?", "", element)
    element = re.sub(r' id="[\w.]+_\d+"', "", element)
    for colour, variable in _VARIABLES.items():
        element = element.replace(colour, variable)
    return re.sub(r"\s*\n\s*", " ", element).replace("> <", "><").strip()


def scale(axes: Axes, values: Sequence[float]) -> None:
    """A y axis for `values`: from zero, or logarithmic where they span more than a factor of 10."""
    low, high = min(values), max(values)
    if low > 0 and high / low > _LOG_SPREAD:
        axes.set_yscale("log")
        axes.set_ylabel(", ".join(part for part in (axes.get_ylabel(), "log scale") if part))
        axes.set_ylim(low / 1.3, high * 1.3)
        plain_decades(axes.yaxis)
    elif low >= 0:
        axes.set_ylim(0, high * 1.08 or 1.0)


def plain_decades(axis: Axis) -> None:
    """Ticks 1, 2, 5, 10, .. on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
