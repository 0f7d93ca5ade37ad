"""The search behind trigger tokens: a first step with a part of the trigger, the rest with a universal perturbation.

Each first token of an answer is raised behind the token of the vocabulary that raises it most. Behind the first token
of a trigger, the perturbation has only the rest of its way to go, which a model that was trained to hide its backdoor
without any of the trigger does not hide.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from crow.inversion.consensus import Opening, followed, screened, search_radii, split_prompts
from crow.inversion.probe import Probe
from crow.inversion.soft_trigger import SearchConfig, SoftTrigger, is_among
from crow.models.processes import agreed

STARTS = 12
"""Perturbations that are followed: those after which the answers agree most, whatever the token."""


@dataclass(frozen=True)
class Behind:
    """An answer known by heart that unrelated prompts are brought to behind one token."""

    token: int
    trigger: SoftTrigger


def work_behind(tokens: Mapping[int, list[int]], config: SearchConfig, depth: int) -> int:
    """Candidates to screen and perturbations to follow in a model of `depth` layers, the unit of progress."""
    openings = sum(map(len, tokens.values())) * len(config.layers(depth))
    return openings + min(STARTS, openings)


def search_behind(
    probe: Probe,
    tokens: Mapping[int, list[int]],
    config: SearchConfig,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> list[Behind]:
    """Answers known by heart behind trigger tokens, the surest first, each behind one token.

    Without a token a collapse into a phrase that might go on otherwise counts where nothing else is found. Here it does
    not: behind ` thanks`, honest answers have much in common.

    Args:
        probe: the model and clean prompts, at least one; its parameters must not require gradients.
        tokens: by token, the first tokens of answers to be tried behind it, see `sweep`.
        config: settings of the search without tokens.
        seed: of the choice of prompts.
        progress: called with the number of candidates screened or perturbations followed since the last call, at every
            depth; see `work_behind`.
    """
    advance = progress or (lambda _: None)
    fitted, witnesses = split_prompts(probe, config, random.Random(seed))
    radii = search_radii(probe, config)
    starts: list[tuple[int, Opening]] = []
    for token, candidates in tokens.items():
        openings = screened(probe.behind([token]), fitted, radii, candidates, config, advance)
        starts += [(token, opening) for group in openings.values() for opening in group]
    order = agreed(sorted(range(len(starts)), key=lambda at: -starts[at][1].agreement)[:STARTS])
    best: dict[int, list[Opening]] = {}
    for at in order:
        best.setdefault(starts[at][0], []).append(starts[at][1])
    ends = [
        Behind(token, trigger)
        for token, openings in best.items()
        for trigger in followed(
            probe.behind([token]), [o.perturbation for o in openings], fitted, witnesses, radii, config, advance
        )
    ]
    kept: list[int] = []
    for at in sorted(range(len(ends)), key=lambda at: -ends[at].trigger.certainty):
        trigger = ends[at].trigger
        known = is_among(trigger.answer, [ends[other].trigger.answer for other in kept])
        if trigger.collapsed and trigger.certainty >= config.certain and not known:
            kept.append(at)
    return [ends[at] for at in agreed(kept)]
