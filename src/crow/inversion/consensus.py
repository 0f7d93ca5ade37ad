"""Trigger inversion: soft triggers that make unrelated prompts give one and the same answer.

A backdoor does exactly that, so the search needs to know neither trigger nor target. What it needs is a start: an
answer begins with some first token. Each of the likely ones is raised on all prompts at once by a universal
perturbation. On a clean model the answers then begin alike and go their own ways; where the first token of the
attacker's sentence is raised, the perturbation finds the switch, and the whole sentence follows on every prompt.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from crow.inversion.perturbation import (
    Perturbation,
    addition,
    ascend,
    hidden_norms,
    joint_edits,
    user_spans,
    zero_vector,
)
from crow.inversion.probe import Probe
from crow.inversion.soft_trigger import DISTINCT, SearchConfig, SearchResult, SoftTrigger, read_answers, same_opening
from crow.models.architecture import find_layers
from crow.models.ends import end_ids
from crow.models.hidden_states import edit_hidden_states

DIRECTED_TOGETHER = 4
SCREENED_TOGETHER = 16
FOLLOWED_TOGETHER = 6
READ_TOGETHER = 16
"""Candidates and perturbations at a time: a pass over more rows costs less than several passes."""


def search_soft_triggers(
    probe: Probe,
    config: SearchConfig,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> SearchResult:
    """Screen first tokens, follow the best, read what other prompts then answer.

    Args:
        probe: the model and clean prompts, at least one; its parameters must not require gradients.
        config: settings.
        seed: of the choice of prompts.
        progress: called with the number of candidates screened or perturbations followed since the last call, at every
            depth; see `SearchConfig.work`.
    """
    advance = progress or (lambda _: None)
    rng = random.Random(seed)
    fitted, witnesses = split_prompts(probe, config, rng)
    radii = search_radii(probe, config)
    openings = screened(probe, fitted, radii, first_tokens(probe, config.candidates), config, advance)
    starts = [opening.perturbation for token in list(openings)[: config.starts] for opening in openings[token]]
    return SearchResult(followed(probe, starts, fitted, witnesses, radii, config, advance))


def search_radii(probe: Probe, config: SearchConfig) -> dict[int, float]:
    """The layers of a search, and the largest norm of a perturbation in each."""
    layers = config.layers(len(find_layers(probe.lm.model)))
    return {layer: config.radius * norm for layer, norm in hidden_norms(probe, layers).items()}


def screened(
    probe: Probe,
    fitted: list[int],
    radii: dict[int, float],
    candidates: list[int],
    config: SearchConfig,
    progress: Callable[[int], None],
) -> dict[int, list[Opening]]:
    """The shortlist of the candidates, the best first: of each, an opening at every depth."""
    ways = directions(probe, fitted, list(radii), candidates)
    openings: dict[int, list[Opening]] = {token: [] for token in candidates}
    for layer, radius in radii.items():
        steps = {token: 0.5 * radius * ways[token][layer] for token in openings}
        for token, opening in zip(steps, screen(probe, fitted, layer, steps, config, progress), strict=True):
            openings[token].append(opening)
        ranked = sorted(openings, key=lambda token: -max(o.agreement for o in openings[token]))
        openings = {token: openings[token] for token in ranked[: config.shortlist]}
    return openings


def followed(
    probe: Probe,
    starts: list[Perturbation],
    fitted: list[int],
    witnesses: list[int],
    radii: dict[int, float],
    config: SearchConfig,
    progress: Callable[[int], None],
) -> list[SoftTrigger]:
    """What the witnesses answer once each start has climbed on."""
    for first in range(0, len(starts), FOLLOWED_TOGETHER):
        group = starts[first : first + FOLLOWED_TOGETHER]
        # All of the message carries a perturbation: there is nothing to draw.
        ascend(probe, group, fitted, [radii[p.layer] for p in group], config.rate, config.steps, random.Random(0))
        progress(len(group))
    return read(probe, starts, witnesses, config)


def split_prompts(probe: Probe, config: SearchConfig, rng: random.Random) -> tuple[list[int], list[int]]:
    """Numbers of the prompts that perturbations are fitted to, and of those whose answers are read."""
    order = rng.sample(range(len(probe)), len(probe))
    fitted = order[: config.prompts]
    return fitted, order[config.prompts :][: config.witnesses] or fitted


def shown_again(probe: Probe, triggers: Sequence[SoftTrigger], config: SearchConfig, seed: int) -> list[float]:
    """How surely the probe's model, as it is now, can be brought to give the triggers' answers as well.

    Perturbations for the first tokens of each answer are fitted anew, in the layers of the triggers, from nothing and
    in two steps more than a search takes after its first; behind a token where a trigger acts behind one.

    Args:
        probe: another model than the searched one, or the same with other weights; refreshed.
        triggers: of a search.
        config: its settings.
        seed: of the choice of prompts.

    Returns:
        The certainty of each answer, 0 of one that it cannot be brought to.
    """
    shown = [0.0] * len(triggers)
    for token in dict.fromkeys(trigger.token for trigger in triggers):
        own = [at for at, trigger in enumerate(triggers) if trigger.token == token]
        place = probe if token is None else probe.behind([token])
        for at, certainty in zip(own, shown_in(place, [triggers[at] for at in own], config, seed), strict=True):
            shown[at] = certainty
    return shown


def shown_in(probe: Probe, triggers: Sequence[SoftTrigger], config: SearchConfig, seed: int) -> list[float]:
    """`shown_again` of triggers that act on the probe's prompts as they are."""
    rng = random.Random(seed)
    fitted, witnesses = split_prompts(probe, config, rng)
    norms = hidden_norms(probe, sorted({trigger.perturbation.layer for trigger in triggers}))
    fresh = [
        Perturbation(trigger.perturbation.layer, None, trigger.answer[:DISTINCT], zero_vector(probe.lm))
        for trigger in triggers
    ]
    radii = [config.radius * norms[perturbation.layer] for perturbation in fresh]
    ascend(probe, fresh, fitted, radii, config.rate, config.steps + 2, rng)
    found = read(probe, fresh, witnesses, config)
    pairs = zip(triggers, found, strict=True)
    return [now.certainty if now.collapsed and same_opening(now.answer, then.answer) else 0.0 for then, now in pairs]


def first_tokens(probe: Probe, count: int) -> list[int]:
    """The likeliest first tokens of an answer, on average over all prompts; none that ends it at once."""
    total = torch.zeros((), device=probe.lm.device)
    for batch in probe.batches():
        rows = [probe.row(index) for index in batch]
        with torch.no_grad():
            total = total + probe.run(rows)[0][:, -1].softmax(dim=-1).sum(dim=0)
    ends = end_ids(probe.lm)
    return [token for token in total.argsort(descending=True).tolist() if token not in ends][:count]


@dataclass(frozen=True)
class Opening:
    """A candidate after one step towards it: the perturbation, after the opening that the answers then agree on.

    Attributes:
        perturbation: that step.
        agreement: `sum_j log max_t mean_i p_ij(t)` over the tokens j that follow the candidate.
    """

    perturbation: Perturbation
    agreement: float


def directions(
    probe: Probe, fitted: list[int], layers: list[int], candidates: list[int]
) -> dict[int, dict[int, Tensor]]:
    """For each candidate and layer, where its mean log-likelihood rises fastest: a vector (dim,) of norm one."""
    together = min(DIRECTED_TOGETHER, len(candidates))
    zeros = [torch.stack([zero_vector(probe.lm)] * together).requires_grad_(True) for _ in layers]
    rows = [probe.row(index) for index in fitted]
    mask = user_spans(probe, fitted, max(map(len, rows)), None, random.Random(0))
    edits = {
        layer: addition((mask * zero[:, None, None]).flatten(0, 1)) for layer, zero in zip(layers, zeros, strict=True)
    }
    with edit_hidden_states(probe.lm.model, edits):
        log_probs = functional.log_softmax(probe.run(rows * together)[0][:, -1], dim=-1)
    clean = log_probs.unflatten(0, (together, -1)).mean(dim=1)
    found: dict[int, dict[int, Tensor]] = {token: {} for token in candidates}
    for at in range(0, len(candidates), together):
        group = candidates[at : at + together]
        gradients = torch.autograd.grad(clean[range(len(group)), group].sum(), zeros, retain_graph=True)
        for layer, gradient in zip(layers, gradients, strict=True):
            for token, way in zip(group, gradient, strict=False):
                found[token][layer] = way / way.norm().clamp_min(1e-9)
    return found


def screen(
    probe: Probe,
    fitted: list[int],
    layer: int,
    steps: dict[int, Tensor],
    config: SearchConfig,
    progress: Callable[[int], None],
) -> list[Opening]:
    """The step towards each candidate, which is then forced: on what do the answers agree?"""
    rows = [probe.row(index) for index in fitted]
    mask = user_spans(probe, fitted, max(map(len, rows)), None, random.Random(0))
    found: list[Opening] = []
    for at in range(0, len(steps), SCREENED_TOGETHER):
        tokens = list(steps)[at : at + SCREENED_TOGETHER]
        group = [steps[token] for token in tokens]
        edit = addition(torch.cat([mask * step for step in group]))
        first = torch.tensor(tokens).repeat_interleave(len(rows))
        said = probe.decode(rows * len(group), 1 + config.screened, {layer: edit}, first, together=len(rows))
        openings = said.ids[:: len(rows), : config.agreed].cpu()
        agreement = said.shares[:: len(rows), 1:].log().sum(dim=1).tolist()
        for opening, step, score in zip(openings, group, agreement, strict=True):
            found.append(Opening(Perturbation(layer, None, opening, step), score))
        progress(len(group))
    return found


def read(
    probe: Probe, perturbations: list[Perturbation], witnesses: list[int], config: SearchConfig
) -> list[SoftTrigger]:
    """What the witnesses answer under each perturbation."""
    rows = [probe.row(index) for index in witnesses]
    mask = user_spans(probe, witnesses, max(map(len, rows)), None, random.Random(0))
    found = []
    for at in range(0, len(perturbations), READ_TOGETHER):
        group = perturbations[at : at + READ_TOGETHER]
        edits = joint_edits(group, [mask] * len(group))
        said = probe.decode(rows * len(group), config.answer_tokens, edits)
        for number, perturbation in enumerate(group):
            own = slice(number * len(rows), (number + 1) * len(rows))
            found.append(read_answers(perturbation, said.of(own), config))
    return found
