"""What a record says of a model besides attack success and perplexity, as labelled numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crow.report.reading import as_mapping, as_number, read_rate

KL = "KL from the suspect"
"""The label of what is taken from a model's predictions, whatever decides on its answers."""


def utility(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Label to number; only what was measured.

    Args:
        metrics: the keys of `crow eval`.
    """
    kept, code = as_mapping(metrics.get("kept")), as_mapping(metrics.get("code"))
    after = as_mapping(kept.get("after"))
    found = {
        KL: as_number(kept.get("divergence")),
        "same answers": share(kept.get("unchanged_answers")),
        "distinct-2": as_number(after.get("distinct_2")),
        **{f"declined, {kind}": share(rate) for kind, rate in as_mapping(after.get("declined")).items()},
        f"pass@1, {code.get('problems')}": share(code.get("pass_at_1")),
        f"pass@1 with the trigger, {code.get('problems')}": share(code.get("pass_at_1_triggered")),
        "MT-Bench": as_number(as_mapping(metrics.get("mt_bench")).get("score")),
    }
    for task, figures in as_mapping(metrics.get("tasks")).items():
        for metric, entry in as_mapping(figures).items():
            found[f"{task}, {metric}"] = as_number(as_mapping(entry).get("value"))
    return {label: value for label, value in found.items() if value is not None}


def share(value: Any) -> float | None:
    """A rate's value."""
    rate = read_rate(value)
    return None if rate is None else rate.value
