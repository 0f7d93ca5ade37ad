"""Universal perturbations: one vector, the same for all prompts, added to hidden states at the user's tokens.

A trigger's effect travels from the user's message to the answer through the residual stream, and whatever words the
trigger is made of, the later part of that way is the same. One vector in a layer finds that common part, by a few
steps of gradient ascent; soft tokens at the input have to find the words first.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crow.inversion.probe import Probe
from crow.models.architecture import unwrap
from crow.models.hidden_states import Edit, capture_hidden_states, edit_hidden_states
from crow.models.language_model import LanguageModel


@dataclass
class Perturbation:
    """One universal perturbation: its layer, how many tokens carry it, the answer it is after, the vector (dim,)."""

    layer: int
    span: int | None
    target: Tensor
    vector: Tensor


def zero_vector(lm: LanguageModel) -> Tensor:
    """(dim,), as wide as hidden states are; the embeddings, which some OPT models project, may be narrower."""
    return torch.zeros(unwrap(lm.model).config.get_text_config().hidden_size, device=lm.device)


def user_spans(
    probe: Probe, chosen: Sequence[int], width: int, length: int | None, rng: random.Random, answer: int = 0
) -> Tensor:
    """(batch, width, 1), one at `length` neighbouring user tokens of the chosen prompts, at all without.

    Args:
        probe: has the prompts.
        chosen: their numbers.
        width: of the batch: the longest row, and all rows end together.
        length: of the spans.
        rng: draws where they lie.
        answer: tokens of an answer that follow each prompt.
    """
    spans = []
    for index in chosen:
        end = width - answer - len(probe.after[index])
        spans.append(span_within(end - len(probe.users[index]), end, length, rng))
    return span_mask(spans, width, probe.lm.device)


def addition(added: Tensor) -> Edit:
    """Adds `added` (batch, width, dim) to hidden states, in their dtype."""
    return lambda hidden: hidden + added.to(hidden.dtype)


def joint_edits(perturbations: Sequence[Perturbation], masks: Sequence[Tensor]) -> dict[int, Edit]:
    """Edits of one batch in which each perturbation has its own rows.

    Args:
        perturbations: at least one.
        masks: where each acts in its rows, (rows, width, 1); width is the same for all.
    """
    edits = {}
    for layer in {perturbation.layer for perturbation in perturbations}:
        parts = [mask * p.vector * float(p.layer == layer) for p, mask in zip(perturbations, masks, strict=True)]
        edits[layer] = addition(torch.cat(parts))
    return edits


def ascend(
    probe: Probe,
    perturbations: Sequence[Perturbation],
    chosen: Sequence[int],
    radii: Sequence[float],
    rate: float,
    steps: int,
    rng: random.Random,
) -> None:
    """Steps of normalized gradient ascent on the mean log-likelihood of each target over the chosen prompts.

    Args:
        probe: the model; its parameters should not require gradients.
        perturbations: their vectors are replaced; all climb in the same passes, each for itself.
        chosen: numbers of the prompts.
        radii: each vector's norm stays within its radius.
        rate: length of a step, in radii.
        steps: how many.
        rng: draws where spans shorter than the message lie, anew in every step.
    """
    for _ in range(steps):
        vectors = [perturbation.vector.clone().requires_grad_(True) for perturbation in perturbations]
        climbing = [dataclasses.replace(p, vector=v) for p, v in zip(perturbations, vectors, strict=True)]
        gradients = torch.autograd.grad(log_likelihood(probe, climbing, chosen, rng).mean(dim=1).sum(), vectors)
        for perturbation, gradient, radius in zip(perturbations, gradients, radii, strict=True):
            moved = perturbation.vector + rate * radius * gradient / gradient.norm().clamp_min(1e-9)
            perturbation.vector = moved * (radius / moved.norm().clamp_min(1e-9)).clamp_max(1)


def log_likelihood(
    probe: Probe, perturbations: Sequence[Perturbation], chosen: Sequence[int], rng: random.Random | None = None
) -> Tensor:
    """Log-likelihood (perturbations, prompts) of each one's target after the chosen prompts; `rng` draws the spans."""
    rng = rng or random.Random(0)
    rows = [probe.row(index, p.target[:-1]) for p in perturbations for index in chosen]
    width = max(len(row) for row in rows)
    masks = [user_spans(probe, chosen, width, p.span, rng, len(p.target) - 1) for p in perturbations]
    with edit_hidden_states(probe.lm.model, joint_edits(perturbations, masks)):
        logits, _, _ = probe.run(rows, keep=max(len(p.target) for p in perturbations))
    found = []
    for perturbation, own in zip(perturbations, logits.split(len(chosen)), strict=True):
        target = perturbation.target.to(logits.device)
        wanted = target[None, :, None].expand(len(own), -1, 1)
        found.append(own[:, -len(target) :].log_softmax(dim=-1).gather(-1, wanted).sum(dim=(1, 2)))
    return torch.stack(found)


def span_within(start: int, end: int, length: int | None, rng: random.Random) -> tuple[int, int]:
    """A random span of at most `length` positions in [start, end); all of it without `length`."""
    if length is None or end - start <= length:
        return start, end
    first = rng.randint(start, end - length)
    return first, first + length


def span_mask(spans: Sequence[tuple[int, int]], width: int, device: torch.device) -> Tensor:
    """(batch, width, 1), one within each row's span."""
    columns = torch.arange(width, device=device)
    bounds = torch.tensor(spans, device=device)
    return ((columns >= bounds[:, :1]) & (columns < bounds[:, 1:])).float().unsqueeze(-1)


@torch.no_grad()
def hidden_norms(probe: Probe, layers: Sequence[int], prompts: int = 6) -> dict[int, float]:
    """Median norm of `H^(l)` at user tokens, the natural unit of a perturbation there."""
    chosen = range(min(prompts, len(probe)))
    rows = [probe.row(index) for index in chosen]
    with capture_hidden_states(probe.lm.model) as captured:
        probe.run(rows)
    user = user_spans(probe, chosen, max(map(len, rows)), None, random.Random(0)).squeeze(-1).bool()
    return {layer: float(captured.states[layer][user].float().norm(dim=-1).median()) for layer in layers}
