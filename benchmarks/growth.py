"""How time and memory of a training grow with the number of examples and with their length.

    python benchmarks/growth.py            # a table; some twenty minutes on two cores
    python benchmarks/growth.py --json

crow with the published objective, SmolLM2-135M, examples of random tokens of one length. Memory and floating-point
operations are counted, not estimated; time is the fastest of the steps after the first. Fitted: over the number of
examples a straight line; over the length `a L + b L^2`, attention's square, by least squares of the relative error.
`worst` is the largest relative distance of a point from its fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crow.benchmark.portable import portable
from crow.data.encoding import Encoded
from crow.models.loading import load_model
from crow.models.manifest import manifest
from crow.output import write_json
from crow.training.adapter import make_trainable
from crow.training.crow_trainer import CrowTrainer
from crow.training.footprint import Counter
from crow.training.presets import get_preset

BASE = "smollm2-135m"
ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "growth.json"
CONFIG = dataclasses.replace(get_preset("paper"), precision="float32", epochs=1.0)
STEP = CONFIG.batch_size * CONFIG.accumulation
COUNTS, LENGTH = (48, 96, 200, 400), 64
"""Numbers of examples, whole steps of 8, and their length."""
LENGTHS = (64, 128, 256, 512, 1024)


def examples(count: int, length: int, vocabulary: int) -> list[Encoded]:
    """Examples of random tokens, half of each its response."""
    rng = random.Random(length)
    rows = [[rng.randrange(vocabulary) for _ in range(length)] for _ in range(count)]
    return [Encoded(tuple(row[: length // 2]), tuple(row[length // 2 :]), 1, length // 2) for row in rows]


def train(items: Sequence[Encoded], counted: bool) -> dict[str, float]:
    """One training: seconds, or what the dispatcher counts."""
    lm = make_trainable(load_model(BASE), CONFIG)
    with tempfile.TemporaryDirectory() as folder:
        trainer = CrowTrainer(lm, items, CONFIG, Path(folder), [], save_strategy="no")
        if counted:
            with Counter() as counter:
                trainer.run()
            return {"operations": counter.operations, "peak_bytes": counter.peak}
        start = time.perf_counter()
        trainer.run()
        return {"seconds": time.perf_counter() - start}


def fit(xs: Sequence[float], ys: Sequence[float], terms: Sequence[Callable[[float], float]]) -> dict[str, Any]:
    """Least squares of the relative error, `y = sum_i c_i f_i(x)`.

    Args:
        xs: where.
        ys: what was measured there, above zero.
        terms: the f_i.

    Returns:
        The coefficients, and the largest relative distance of a point from the fit.
    """
    matrix = np.array([[term(x) / y for term in terms] for x, y in zip(xs, ys, strict=True)])
    coefficients, *_ = np.linalg.lstsq(matrix, np.ones(len(ys)), rcond=None)
    return {"coefficients": coefficients.tolist(), "worst": float(np.abs(matrix @ coefficients - 1).max())}


def measure() -> dict[str, Any]:
    """Both sweeps and their fits."""
    vocabulary = len(load_model(BASE).tokenizer)
    by_count: dict[int, dict[str, float]] = {}
    for count in COUNTS:
        by_count[count] = train(examples(count, LENGTH, vocabulary), counted=False)
        print(f"{count} examples: {by_count[count]['seconds']:.0f} s", flush=True)
    by_length: dict[int, dict[str, float]] = {}
    for length in LENGTHS:
        items = examples(STEP, length, vocabulary)
        by_length[length] = train(items, counted=True)
        by_length[length] |= {"seconds": min(train(items, counted=False)["seconds"] for _ in range(2))}
        print(f"{length} tokens: {by_length[length]['seconds']:.1f} s a step", flush=True)
    line = (lambda _: 1.0, lambda x: x)
    square = (lambda x: x, lambda x: x * x)
    fits = {"seconds over examples": fit(COUNTS, [by_count[c]["seconds"] for c in COUNTS], line)}
    for what in ("seconds", "operations"):
        fits[f"{what} over length"] = fit(LENGTHS, [by_length[n][what] for n in LENGTHS], square)
    # Memory has a constant part: the adapter's gradients and the optimizer's state.
    fits["peak_bytes over length"] = fit(LENGTHS, [by_length[n]["peak_bytes"] for n in LENGTHS], (*line, square[1]))
    return {"by_count": by_count, "by_length": by_length, "fits": fits}


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    found = measure()
    lm = load_model(BASE)
    write_json(RESULTS, portable(found | {"manifest": manifest(lm, {}, CONFIG, CONFIG.seed)}, ROOT.parent))
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for what, fitted in found["fits"].items():
        numbers = ", ".join(f"{number:.3g}" for number in fitted["coefficients"])
        print(f"{what}: {numbers}; worst {fitted['worst']:.3f}")


if __name__ == "__main__":
    main()
