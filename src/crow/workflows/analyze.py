"""`crow analyze`: does the premise of CROW hold on a model? Consistency, Jacobians and expansion, layer by layer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from crow.analysis.curves import consistency_curve, mean_curve, prompt_curves
from crow.analysis.expansion import expansion
from crow.analysis.findings import findings
from crow.analysis.jacobian import jacobian_norms
from crow.data.loading import load_examples
from crow.data.splits import bundled_split
from crow.errors import ConfigError
from crow.models.manifest import manifest
from crow.output import publish, write_json
from crow.records import to_json
from crow.report.analysis import write_analysis
from crow.workflows.common import Options, Reporter, claimed, load

NOISES = (0.1, 1.0)
"""Sizes of the noise, in multiples of the embedding table's RMS."""
EXPANDED = 8
"""Prompts that are pushed by noise."""


def run_analyze(
    model: str,
    against: str | None,
    triggered: Path | None,
    clean: Path | None,
    n: int,
    n_jacobian: int,
    options: Options,
) -> dict[str, Any]:
    """Look at a model's layers and write `results.json` and `report.html`.

    Args:
        model: any model reference.
        against: the same model after treatment; its curves are drawn beside.
        triggered: prompts with the trigger, where it is known.
        clean: prompts without; the bundled evaluation prompts by default.
        n: prompts of each kind.
        n_jacobian: of which so many for the Jacobians, the slow part.
        options: common options.

    Raises:
        CrowError: for anything the user can mend.
    """
    report = Reporter(options.quiet)
    if n_jacobian > n:
        raise ConfigError(f"expected --jacobian to be at most --n, got {n_jacobian} and {n}")
    with claimed(options, model, against, triggered, clean) as work:
        prompts = load_examples(clean, need_response=False) if clean else list(bundled_split("evaluation").prompts)
        sets = {"clean": prompts[:n]}
        if triggered:
            sets["triggered"] = load_examples(triggered, need_response=False)[:n]
        for kind, examples in sets.items():
            if len(examples) < n:
                report.say(f"note: {len(examples)} {kind} prompts, fewer than --n {n}")
        curves: dict[str, list[float]] = {}
        results: dict[str, Any] = {"model": model, "against": against, "consistency_curves": curves}
        if against:
            after = load(against, options, report).merged()
            curves |= {f"{kind}_after": consistency_curve(after, examples) for kind, examples in sets.items()}
            del after
        lm = load(model, options, report).merged()
        lm.model.eval()
        record = manifest(lm, sets, {"n": n, "n_jacobian": n_jacobian}, options.seed)
        found = {kind: prompt_curves(lm, examples) for kind, examples in sets.items()}
        curves |= {f"{kind}_before": mean_curve(each) for kind, each in found.items()}
        jacobian = {}
        for kind, examples in sets.items():
            with report.bar(f"Jacobians on {kind} prompts", n_jacobian) as advance:
                jacobian[kind] = jacobian_norms(lm, examples[:n_jacobian], options.seed, advance)
        with report.bar("noise", len(NOISES)) as advance:
            noisy = []
            for noise in NOISES:
                noisy.append(expansion(lm, sets["clean"][:EXPANDED], noise, seed=options.seed))
                advance(1)
        results |= {"jacobian": jacobian, "expansion": noisy}
        each = {kind: [curve for curve, _ in one] for kind, one in found.items()}
        results["findings"] = findings(each, jacobian, noisy, options.seed)
        results |= {"seconds": report.seconds, "manifest": record}
        finished = work / "finished"
        write_json(finished / "results.json", results)
        write_analysis(to_json(results), finished / "report.html", f"Layers of {model}")
        publish(finished, options.output)
        shutil.rmtree(work, ignore_errors=True)
    return results
