"""The templates of all pages: escaping always on, and nothing marked safe but our own figures."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from crow.report.text import clip, plural, visible

_FOLDER = Path(__file__).parent


@functools.cache
def environment() -> Environment:
    """Templates with escaping always on; every string that is printed goes through `visible` first."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters.update(clip=clip, plural=plural, figure=_figure_markup)
    return environment


def _printable(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _figure_markup(svg: str) -> Markup:
    """Markup of a figure of ours, which holds no text of a model. Nothing else may be marked safe."""
    return Markup(svg)  # noqa: S704
