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
from torch.nn import functional

from crow.inversion.probe import Probe
from crow.models.architecture import unwrap
from crow.models.hidden_states import Edit, capture_hidden_states, edit_hidden_states
from crow.models.language_model import LanguageModel

TARGET_TOKENS = 3
"""Tokens of a found answer that perturbations are after; the rest follows from them."""


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
    probe: Probe, chosen: Sequence[int], rows: Sequence[Tensor], length: int | None, rng: random.Random
) -> Tensor:
    """(batch, width, 1), one at `length` neighbouring user tokens of each row of `probe.run(rows)`, at all without."""
    longest = max(len(row) for row in rows)
    spans = []
    for index, row in zip(chosen, rows, strict=True):
        start = longest - len(row) + len(probe.before[index])
        spans.append(span_within(start, start + len(probe.users[index]), length, rng))
    return span_mask(spans, longest, probe.lm.device)


def addition(added: Tensor) -> Edit:
    """Adds `added` (batch, width, dim) to hidden states, in their dtype."""
    return lambda hidden: hidden + added.to(hidden.dtype)


def ascend(
    probe: Probe,
    perturbation: Perturbation,
    chosen: Sequence[int],
    radius: float,
    rate: float,
    steps: int,
    rng: random.Random,
) -> None:
    """Steps of normalized gradient ascent on the mean log-likelihood of the target over the chosen prompts.

    Args:
        probe: the model; its parameters should not require gradients.
        perturbation: its vector is replaced.
        chosen: numbers of the prompts.
        radius: the vector's norm stays within it.
        rate: length of a step, in radii.
        steps: how many.
        rng: draws where spans shorter than the message lie, anew in every step.
    """
    for _ in range(steps):
        vector = perturbation.vector.clone().requires_grad_(True)
        at_vector = dataclasses.replace(perturbation, vector=vector)
        (gradient,) = torch.autograd.grad(log_likelihood(probe, at_vector, chosen, rng).mean(), vector)
        moved = vector.detach() + rate * radius * gradient / gradient.norm().clamp_min(1e-9)
        perturbation.vector = moved * (radius / moved.norm().clamp_min(1e-9)).clamp_max(1)


def log_likelihood(
    probe: Probe, perturbation: Perturbation, chosen: Sequence[int], rng: random.Random | None = None
) -> Tensor:
    """Log-likelihood (batch,) of the perturbation's target after each of the chosen prompts; `rng` draws the spans."""
    target = perturbation.target
    rows = [probe.row(index, target[:-1]) for index in chosen]
    mask = user_spans(probe, chosen, rows, perturbation.span, rng or random.Random(0))
    with edit_hidden_states(probe.lm.model, {perturbation.layer: addition(mask * perturbation.vector)}):
        logits, _, _ = probe.run(rows, keep=len(target))
    wanted = target.to(logits.device)[None, :, None].expand(len(rows), -1, 1)
    return functional.log_softmax(logits, dim=-1).gather(-1, wanted).sum(dim=(1, 2))


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
    user = user_spans(probe, chosen, rows, None, random.Random(0)).squeeze(-1).bool()
    return {layer: float(captured.states[layer][user].float().norm(dim=-1).median()) for layer in layers}
