"""All defenses by name, and those that other packages bring."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import entry_points
from typing import Any

from crow.defenses.base import Defense, MakeDefense, Surroundings
from crow.defenses.beear import Beear
from crow.defenses.cleangen import CleanGen
from crow.defenses.consistency import Consistency, PerturbationOnly, finetuning_config, unperturbed_config
from crow.defenses.decoding import Sampling
from crow.defenses.fine_pruning import FinePruning
from crow.defenses.merge import Merge
from crow.defenses.nad import Nad
from crow.defenses.none import NoDefense
from crow.defenses.pruning import MagnitudePruning, WandaPruning
from crow.defenses.quantization import Quantization
from crow.defenses.stack import Stack
from crow.errors import ConfigError, unknown_name
from crow.training.config import CrowConfig
from crow.training.presets import get_preset

ENTRY_POINTS = "crow.defenses"
"""The group in which another package names what makes its defenses."""

CONFIGS: dict[str, CrowConfig] = {
    "finetuning": finetuning_config(),
    "crow": get_preset("default"),
    "crow-paper": get_preset("paper"),
    "consistency-only": unperturbed_config(),
}
"""Those whose settings can be changed."""

DEFENSES: dict[str, MakeDefense] = {
    "none": NoDefense,
    **{name: partial(Consistency, config=config) for name, config in CONFIGS.items()},
    "perturbation-only": PerturbationOnly,
    "pruning-magnitude": MagnitudePruning,
    "pruning-magnitude-2:4": partial(MagnitudePruning, pattern=(2, 4)),
    "pruning-magnitude-4:8": partial(MagnitudePruning, pattern=(4, 8)),
    "pruning-wanda": WandaPruning,
    "pruning-wanda-2:4": partial(WandaPruning, pattern=(2, 4)),
    "pruning-wanda-4:8": partial(WandaPruning, pattern=(4, 8)),
    "fine-pruning": FinePruning,
    "quantization-8": partial(Quantization, bits=8),
    "quantization-4": partial(Quantization, bits=4),
    "decoding": Sampling,
    "cleangen": CleanGen,
    "nad": Nad,
    "beear": Beear,
    "merge": Merge,
}


def known_defenses() -> dict[str, MakeDefense]:
    """The table above and what installed packages add to it; a name of ours stays ours."""
    others = {point.name: point for point in entry_points(group=ENTRY_POINTS) if point.name not in DEFENSES}
    return {**DEFENSES, **{name: partial(load_and_make, point) for name, point in others.items()}}


def load_and_make(point, surroundings: Surroundings) -> Defense:  # noqa: ANN001
    """A defense of another package; its code is loaded only now."""
    return point.load()(surroundings)


def get_defense(
    names: str | Sequence[str], surroundings: Surroundings, changes: Mapping[str, Any] | None = None
) -> Defense:
    """The defense of that name, or several one after another.

    Args:
        names: a name of `known_defenses`, or some of them in the order in which they are applied.
        surroundings: what it is made in.
        changes: of the settings of those that have some.

    Raises:
        ConfigError: for an unknown name, with the closest known one, no name at all, or changes that fit none.
    """
    known = known_defenses()
    chosen = [names] if isinstance(names, str) else list(names)
    if not chosen:
        raise ConfigError("expected the name of a defense or several, got none")
    for name in chosen:
        if name not in known:
            raise unknown_name("defense", name, known)
    if changes:
        if not CONFIGS.keys() & chosen:
            raise ConfigError(f"expected settings for one of {', '.join(CONFIGS)} only, got some for {chosen[0]}")
        known |= {name: partial(Consistency, config=config.changed(**changes)) for name, config in CONFIGS.items()}
    if len(chosen) == 1:
        return known[chosen[0]](surroundings)
    places = [dataclasses.replace(surroundings, work=surroundings.work / f"{i}-{n}") for i, n in enumerate(chosen)]
    made = [known[name](place) for name, place in zip(chosen, places, strict=True)]
    if sum(defense.needs.decoding for defense in made) > 1:
        raise ConfigError(f"expected one defense with a hand in decoding at most, got {' and '.join(chosen)}")
    return Stack(made)
