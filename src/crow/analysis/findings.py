"""What a look at the layers says, in sentences."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from statistics import mean

from crow.analysis.expansion import Expansion

RESAMPLES = 1000
FEWEST = 5
"""Of fewer prompts a bootstrap makes too narrow an interval."""
Rows = Sequence[Sequence[float]]
"""One value a layer, for every prompt."""


def findings(
    curves: Mapping[str, Rows],
    jacobian: Mapping[str, Rows],
    noisy: Sequence[Expansion],
    seed: int,
) -> list[str]:
    """What was seen, in sentences.

    Args:
        curves: kind of prompt to one consistency curve a prompt.
        jacobian: likewise the norms.
        noisy: what noise did.
        seed: of the bootstrap.
    """
    said = []
    for name, rows in (("Layer consistency (1 - cos)", curves), ("The Jacobians' spectral norm", jacobian)):
        if "triggered" in rows:
            said += compared(name, rows["triggered"], rows["clean"], random.Random(seed))
    everything = [row for rows in jacobian.values() for row in rows]
    said.append(
        f"A layer can blow up a tiny change of its input up to {max(map(max, everything)):.3g} times; all layers at "
        f"once, were each at its worst, {mean(map(math.prod, everything)):.3g} times."
    )
    said += [
        f"Noise of {found.noise:g} x the embeddings' RMS grew at most {max(found.from_input):.3g} times on its way "
        f"through the layers; consistency would allow up to {max(found.bound):.3g} times in one layer alone "
        f"(violations of that bound: {found.violations})."
        for found in noisy
    ]
    return said


def compared(name: str, triggered: Rows, clean: Rows, rng: random.Random) -> list[str]:
    """Whether a figure is larger with the trigger, and where most."""
    one, other = [mean(row) for row in triggered], [mean(row) for row in clean]
    if min(len(one), len(other)) < FEWEST:
        return [
            f"{name}, mean over layers, is {mean(one):.4g} on prompts with the trigger and {mean(other):.4g} on clean "
            f"ones: n = {len(one)} and {len(other)} are too few to tell whether that is chance."
        ]
    low, high = difference_interval(one, other, rng)
    verdict = "larger" if low > 0 else "smaller" if high < 0 else "neither larger nor smaller beyond chance"
    gaps = [
        mean(with_trigger) - mean(without)
        for with_trigger, without in zip(columns(triggered), columns(clean), strict=True)
    ]
    widest = max(range(len(gaps)), key=lambda layer: abs(gaps[layer]))
    return [
        f"{name}, mean over layers, is {verdict} on prompts with the trigger: {mean(one):.4g} against "
        f"{mean(other):.4g} on clean ones (n = {len(one)} and {len(other)}, 95 % interval of the difference "
        f"{low:.3g} to {high:.3g}).",
        f"The difference is largest at layer {widest + 1}, {gaps[widest]:+.3g}.",
    ]


def columns(rows: Rows) -> list[tuple[float, ...]]:
    """The values of every layer."""
    return list(zip(*rows, strict=True))


def difference_interval(one: Sequence[float], other: Sequence[float], rng: random.Random) -> tuple[float, float]:
    """95 % bootstrap interval of the difference of two means."""
    found = sorted(
        mean(rng.choices(one, k=len(one))) - mean(rng.choices(other, k=len(other))) for _ in range(RESAMPLES)
    )
    return found[round(0.025 * RESAMPLES)], found[round(0.975 * RESAMPLES) - 1]
