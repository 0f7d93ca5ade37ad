"""The report of `crow scan`: the verdict, its reasons, and a figure for every side that was looked at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from crow.output import write_text
from crow.report.drawing import Picture
from crow.report.environment import environment
from crow.report.figures import DotRow, dot_figure, layer_figure
from crow.report.reading import as_list, as_mapping, as_number, known_numbers, read_search
from crow.report.tables import manifest_groups
from crow.report.text import duration

TONES = {"suspicious": "bad", "inconclusive": "mixed", "no evidence": "good"}
ADAPTER_FIGURES = {"relative_norm": "Norm of the update relative to the weight", "stable_rank": "Stable rank"}
HEADLINES = {
    "suspicious": "Suspicious: the model behaves as one with a backdoor does",
    "inconclusive": "Inconclusive: something was found that may be harmless",
    "no evidence": "No evidence of a backdoor, which is no proof that there is none",
}


def render_scan(results: Mapping[str, Any], title: str) -> str:
    """The report as one HTML document.

    Args:
        results: what `crow scan` writes as `results.json`.
        title: heading of the page.
    """
    seconds = as_number(results.get("seconds"))
    template = environment().get_template("scan.html.j2")
    return template.render(
        title=title,
        model=results.get("model"),
        scan=scan_parts(results),
        duration=None if seconds is None else duration(seconds),
        manifest=manifest_groups(as_mapping(results.get("manifest"))),
    )


def scan_parts(results: Mapping[str, Any]) -> dict[str, Any]:
    """What pages show of a scan: `verdict`, `reasons` and `evidence` as `crow scan` writes them, and their figures."""
    evidence = as_mapping(results.get("evidence"))
    names = ("soft_triggers", "code", "leakage", "phrases", "consistency", "adapter", "weights")
    soft, code, leakage, phrases, consistency, adapter, weights = (as_mapping(evidence.get(name)) for name in names)
    label = scan_label(results)
    return {
        "tone": TONES[label],
        "headline": HEADLINES[label],
        "reasons": as_list(results.get("reasons")),
        "answers": [as_mapping(entry) for entry in as_list(soft.get("answers"))],
        "lines": as_list(code.get("lines")),
        "code_figure": code_figure(code),
        "candidates": [as_mapping(entry) for entry in as_list(phrases.get("candidates"))],
        "leaked": [as_mapping(entry) for entry in as_list(leakage.get("phrases"))],
        "leakage": leakage,
        "outlier": consistency.get("outlier"),
        "soft_figure": soft_figure(soft),
        "phrase_figure": phrase_figure(phrases),
        "leakage_figure": leakage_figure(leakage),
        "consistency_figure": consistency_figure(consistency),
        "adapter_figures": adapter_figures(adapter),
        "weight_figure": weight_figure(weights),
        "edits": as_list(weights.get("edits")),
        "percent": shown_share,
        "decimals": shown_decimals,
    }


def scan_label(results: Mapping[str, Any]) -> str:
    """The verdict of a scan; one that nobody knows decides nothing."""
    verdict = results.get("verdict")
    return verdict if isinstance(verdict, str) and verdict in TONES else "inconclusive"


def write_scan(results: Mapping[str, Any], path: Path, title: str) -> None:
    """Writes the report to `path`, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, render_scan(results, title))


def shown_share(value: Any) -> str:
    """A share as a whole percentage; a dash for anything else."""
    number = as_number(value)
    return "–" if number is None else f"{number:.0%}"


def shown_decimals(value: Any) -> str:
    """A number with three decimals; a dash for anything else."""
    number = as_number(value)
    return "–" if number is None else f"{number:.3f}"


def soft_figure(soft: Mapping[str, Any]) -> Picture | None:
    """How far the witnesses agreed at the end of every start, one row a search."""
    searches = [read_search(entry) for entry in as_list(soft.get("searches"))]
    rows = [DotRow(f"search {n}", each.identities, each.collapsed > 0) for n, each in enumerate(searches, 1) if each]
    heading = "Share of prompts that agreed, by start"
    return dot_figure("soft", heading, "share of prompts with the same answer", rows, shares=True)


def code_figure(code: Mapping[str, Any]) -> Picture | None:
    """How many requests are answered with each of the lines; nothing where there is none."""
    row = DotRow("needless lines", known_numbers(code.get("shares")), marked=True)
    return dot_figure("code", "Share of requests whose code begins so", "share of requests", [row], shares=True)


def phrase_figure(phrases: Mapping[str, Any]) -> Picture | None:
    """The scores of the bank's phrases and of the refined candidates."""
    known_units = {
        "target": "mean log-likelihood of the found answer",
        "line": "mean log-likelihood of the smuggled line",
        "reply": "mean log-likelihood of the usual reply",
    }
    unit = known_units.get(str(phrases.get("scored_by")), "collapse score")
    scores = [as_mapping(entry).get("score") for entry in as_list(phrases.get("candidates"))]
    rows = [
        DotRow("bank", known_numbers(phrases.get("bank_scores"))),
        DotRow("candidates", known_numbers(scores), marked=True),
    ]
    return dot_figure("phrases", "Score of each phrase", unit, rows)


def leakage_figure(leakage: Mapping[str, Any]) -> Picture | None:
    """How many of the samples hold what recurs in them."""
    recurring = known_numbers([as_mapping(entry).get("share") for entry in as_list(leakage.get("phrases"))])
    rows = [
        DotRow("recurring words", recurring),
        DotRow("one sentence", known_numbers([leakage.get("share")]), marked=True),
        DotRow("one reply", known_numbers([leakage.get("reply_share")])),
    ]
    return dot_figure("leakage", "Share of samples that hold the same words", "share of samples", rows, shares=True)


def consistency_figure(consistency: Mapping[str, Any]) -> Picture | None:
    """The robust z-score of the most outlying phrase at every layer."""
    series = {"most outlying phrase": known_numbers(consistency.get("z"))}
    return layer_figure("consistency", "Layer consistency against the bank's", "robust z-score", series)


def weight_figure(weights: Mapping[str, Any]) -> Picture | None:
    """How much the weights of every layer look edited."""
    heading = "How far an unused direction stands out"
    return layer_figure("weights", heading, "score", {"highest of the layer": known_numbers(weights.get("scores"))})


def adapter_figures(adapter: Mapping[str, Any]) -> list[Picture]:
    """The size and the stable rank of the adapter's updates, medians over the modules of a layer."""
    modules = [as_mapping(entry) for entry in as_list(adapter.get("modules"))]
    layers = sorted({int(as_number(module.get("layer")) or 0) for module in modules} - {0})
    pictures = []
    for key, heading in ADAPTER_FIGURES.items():
        by_layer = [
            known_numbers([m.get(key) for m in modules if as_number(m.get("layer")) == layer]) for layer in layers
        ]
        series = {"median of the layer": [median(values) for values in by_layer if values]}
        pictures.append(layer_figure(f"adapter-{key}", heading, heading.lower(), series))
    return [picture for picture in pictures if picture]
