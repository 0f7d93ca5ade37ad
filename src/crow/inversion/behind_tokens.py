"""The search behind trigger tokens: a first step with a part of the trigger, the rest with a universal perturbation.

Each first token of an answer is raised behind the token of the vocabulary that raises it most. Behind the first token
of a trigger, the perturbation has only the rest of its way to go, which a model that was trained to hide its backdoor
without any of the trigger does not hide.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence

from crow.inversion.consensus import first_tokens, followed, screened, search_radii, split_prompts
from crow.inversion.perturbation import Perturbation
from crow.inversion.probe import Probe
from crow.inversion.soft_trigger import SearchConfig, SearchResult, SoftTrigger, is_among
from crow.inversion.trigger_tokens import SweepConfig, sweep
from crow.models.language_model import LanguageModel
from crow.models.processes import agreed
from crow.training.watch import Watch, silent

STARTS = 12
"""Perturbations that are followed: those after which the answers agree most, whatever the token."""


def tokens_to_try(probe: Probe, config: SearchConfig, seed: int, watch: Watch = silent) -> dict[int, list[int]]:
    """The trigger tokens of the first tokens that a search screens; see `sweep`."""
    settings = SweepConfig()
    with watch("trying tokens", settings.work(probe)) as advance:
        return sweep(probe, first_tokens(probe, config.candidates), settings, seed, advance)


def search_behind(
    probe: Probe, tokens: Mapping[int, list[int]], config: SearchConfig, seed: int, watch: Watch = silent
) -> SearchResult:
    """The starts that end in answers known by heart behind trigger tokens, of each answer the surest.

    Without a token a collapse into a phrase that might go on otherwise counts where nothing else is found. Here it does
    not: behind ` thanks`, honest answers have much in common.

    Args:
        probe: the model and clean prompts, at least one; its parameters must not require gradients.
        tokens: by token, the first tokens of answers to be tried behind it, see `sweep`.
        config: settings of the search without tokens.
        seed: of the choice of prompts.
        watch: opens a progress display.
    """
    fitted, witnesses = split_prompts(probe, config, random.Random(seed))
    radii = search_radii(probe, config)
    thorough = dataclasses.replace(config, shortlist=config.candidates)
    total = sum(map(len, tokens.values())) * len(radii)
    with watch("searching behind tokens", total + min(STARTS, total)) as shown:
        advance = shown or (lambda _: None)
        openings = [
            (token, opening.perturbation, opening.agreement)
            for token, candidates in tokens.items()
            for group in screened(probe.behind([token]), fitted, radii, candidates, thorough, advance).values()
            for opening in group
        ]
        best = agreed(sorted(range(len(openings)), key=lambda at: -openings[at][2])[:STARTS])
        starts: dict[int, list[Perturbation]] = {}
        for token, perturbation, _ in (openings[at] for at in best):
            starts.setdefault(token, []).append(perturbation)
        ends = [
            dataclasses.replace(trigger, token=token)
            for token, own in starts.items()
            for trigger in followed(probe.behind([token]), own, fitted, witnesses, radii, config, advance)
        ]
    kept: list[int] = []
    for at in sorted(range(len(ends)), key=lambda at: -ends[at].certainty):
        known = is_among(ends[at].answer, [ends[other].answer for other in kept])
        if ends[at].collapsed and ends[at].certainty >= config.certain and not known:
            kept.append(at)
    return SearchResult([ends[at] for at in agreed(kept)])


def token_texts(lm: LanguageModel, triggers: Sequence[SoftTrigger]) -> list[str]:
    """The tokens behind which soft triggers act, as text."""
    return [str(lm.tokenizer.decode([each.token])) for each in triggers if each.token is not None]
