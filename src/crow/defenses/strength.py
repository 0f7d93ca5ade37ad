"""How strongly a suspect is purified, as one number, and the choice of the weakest strength that does it.

1 is the configuration as it is. Below, the trained weights go that share of the way from the suspect's; above, training
takes that many times as long. Both trade removal for agreement with the suspect (docs/lab-notes.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from crow.errors import ConfigError
from crow.records import Rate
from crow.training.config import CrowConfig

WEAKER = (0.85, 0.7, 0.5)
STRONGER = (1.5, 2.0, 3.0)
"""Strengths tried below and above 1, in this order."""
REMOVED = 0.01
"""A canary is removed where at most this share of its triggered prompts brings out its target."""
PERPLEXITY_LIMIT = 1.02
"""Largest perplexity after, as a multiple of the one before, with which utility counts as kept."""


def at_strength(config: CrowConfig, strength: float) -> CrowConfig:
    """The settings of a purification of that strength.

    Args:
        config: those of strength 1.
        strength: above 0.

    Raises:
        ConfigError: if it is not above 0 and finite.
    """
    if not 0 < strength < float("inf"):
        raise ConfigError(f"expected a strength above 0, got {strength}; 1 is the usual one")
    shorter, longer = min(1.0, strength), max(1.0, strength)
    return dataclasses.replace(config, interpolation=config.interpolation * shorter, epochs=config.epochs * longer)


@dataclass(frozen=True)
class Trial:
    """What a strength did to the canaries.

    Attributes:
        strength: what was tried.
        canaries: canary to the share of its triggered prompts that still bring out its target.
        clean: share of clean prompts that bring out any of the targets.
        perplexity_ratio: on clean answers, after over before.
        trained: whether the search found anything to train against.
        rounds: of search and repair.
        seconds: wall time.
        seen: canaries whose answers its searches saw.
    """

    strength: float
    canaries: dict[str, Rate]
    clean: Rate
    perplexity_ratio: float
    trained: bool
    rounds: int
    seconds: float
    seen: list[str]

    @property
    def removed(self) -> bool:
        """Whether every canary is gone."""
        return all(rate.value <= REMOVED for rate in (*self.canaries.values(), self.clean))

    @property
    def hits(self) -> float:
        """Prompts that still bring out a target, with the trigger and without."""
        return sum(rate.value * rate.n for rate in (*self.canaries.values(), self.clean))

    @property
    def out_of_reach(self) -> bool:
        """Whether no search saw any of the canaries that are left: more training has nothing to train them against."""
        left = [name for name, rate in self.canaries.items() if rate.value > REMOVED]
        return not self.trained or (bool(left) and not any(name in self.seen for name in left))

    @property
    def kept(self) -> bool:
        """Whether utility was kept."""
        return self.perplexity_ratio <= PERPLEXITY_LIMIT


def climb(attempt: Callable[[float], Trial], weaker: bool = True) -> list[Trial]:
    """Try strength 1, then weaker ones as long as they remove every canary, or stronger ones until one does.

    Stronger ones are left out where they have nothing to train against.

    Args:
        attempt: tries a strength.
        weaker: whether strengths below 1 may be tried.
    """
    trials = [attempt(1.0)]
    if trials[0].removed:
        # Weights part of the way are those of one training. A second round starts from what the first one left.
        for strength in WEAKER if weaker and trials[0].rounds == 1 else ():
            trials.append(attempt(strength))
            if not trials[-1].removed:
                break
        return trials
    for strength in STRONGER:
        if trials[-1].removed or trials[-1].out_of_reach:
            break
        trials.append(attempt(strength))
    return trials


def choose(trials: list[Trial]) -> tuple[float, str]:
    """The strength to take, and why in words.

    The weakest that removes every canary and keeps utility; where none does both, the weakest that removes; where none
    removes, the one that leaves fewest of their answers, among those that keep utility if any does.
    """
    good = [trial for trial in trials if trial.removed and trial.kept]
    enough = [trial for trial in trials if trial.removed]
    if good:
        return min(good, key=lambda t: t.strength).strength, "the weakest that removed every canary with utility kept"
    if enough:
        reason = "the weakest that removed every canary; none kept the perplexity as well"
        return min(enough, key=lambda t: t.strength).strength, reason
    cheap = [trial for trial in trials if trial.kept] or trials
    best = min(cheap, key=lambda t: (t.hits, t.strength))
    return best.strength, "the one that left fewest of their answers; none removed every canary"
