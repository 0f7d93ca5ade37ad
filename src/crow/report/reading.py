"""Reads loosely typed results (what `results.json` holds) into records; what is missing or malformed is None.

A rate without its n, a search without starts and a number that is not finite are no measurements:
they read as None, so that no verdict can rest on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crow.records import Perplexity, Rate, SearchRecord, wilson_interval

_LARGEST = 1e30


@dataclass(frozen=True)
class Evaluation:
    """One measurement of a model, as `crow eval` writes it; None where something was not measured."""

    triggered: Rate | None = None
    clean: Rate | None = None
    perplexity: Perplexity | None = None
    seconds: float | None = None
    n_empty: int | None = None
    n_degenerate: int | None = None
    n_degenerate_clean: int | None = None

    @property
    def n_prompts(self) -> int:
        """How many answers the counts of empty and degenerate answers are out of."""
        return sum(rate.n for rate in (self.triggered, self.clean) if rate is not None)


def as_mapping(value: Any) -> Mapping[str, Any]:
    """`value` where it is a mapping, otherwise an empty one."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: Any) -> list[Any]:
    """`value` as a list where it is a sequence other than text, otherwise an empty one."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else []


def as_number(value: Any) -> float | None:
    """`value` as a float of less than 1e30 in size (axes overflow near the end); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _LARGEST else None


def as_count(value: Any) -> int | None:
    """`value` as a whole number >= 0, otherwise None."""
    number = as_number(value)
    return int(number) if number is not None and number >= 0 and number == int(number) else None


def as_numbers(value: Any) -> list[float | None]:
    """Each entry of a list as a finite number or None (a gap in a curve)."""
    return [as_number(entry) for entry in as_list(value)]


def known_numbers(value: Any) -> list[float]:
    """The numbers of a list, without its gaps."""
    return [number for number in as_numbers(value) if number is not None]


def read_rate(value: Any) -> Rate | None:
    """A rate with n >= 1 and a value in [0, 1]; a missing interval is computed (Wilson, 95 %)."""
    entry = as_mapping(value)
    share, n = as_number(entry.get("value")), as_count(entry.get("n"))
    if share is None or not n or not 0 <= share <= 1:
        return None
    low, high = as_number(entry.get("low")), as_number(entry.get("high"))
    if low is None or high is None:
        low, high = wilson_interval(round(share * n), n)
    return Rate(share, n, as_count(entry.get("n_unscored")) or 0, low, high)


def read_perplexity(value: Any) -> Perplexity | None:
    """A perplexity > 0; `n_tokens` is 0 where it was not recorded."""
    entry = as_mapping(value)
    number = as_number(entry.get("value"))
    return Perplexity(number, as_count(entry.get("n_tokens")) or 0) if number is not None and number > 0 else None


def read_evaluation(value: Any) -> Evaluation:
    """The measurement under `before` or `after`."""
    entry = as_mapping(value)
    return Evaluation(
        triggered=read_rate(entry.get("asr_triggered")),
        clean=read_rate(entry.get("asr_clean")),
        perplexity=read_perplexity(entry.get("perplexity")),
        seconds=as_number(entry.get("seconds")),
        n_empty=as_count(entry.get("n_empty")),
        n_degenerate=as_count(entry.get("n_degenerate")),
        n_degenerate_clean=as_count(entry.get("n_degenerate_clean")),
    )


def read_search(value: Any) -> SearchRecord | None:
    """A search with at least one start whose collapsed starts are known and no more than its starts."""
    entry = as_mapping(value)
    starts, collapsed = as_count(entry.get("starts")), as_count(entry.get("collapsed"))
    if not starts or collapsed is None or collapsed > starts:
        return None

    def texts(name: str) -> list[str]:
        return [str(text) for text in as_list(entry.get(name))]

    return SearchRecord(
        starts,
        collapsed,
        texts("texts"),
        identities=known_numbers(entry.get("identities")),
        artefacts=texts("artefacts"),
        lines=texts("lines"),
        certainties=known_numbers(entry.get("certainties")),
        stock=texts("stock"),
        closings=texts("closings"),
        edits=texts("edits"),
        memorized=texts("memorized"),
        behind=texts("behind"),
        tokens=texts("tokens"),
    )
