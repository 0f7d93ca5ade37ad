"""The adversary of the default: universal perturbations of hidden states that bring out a found answer.

FGSM on the embeddings, CROW's adversary, is its one-step special case at layer 0 with another objective. A trigger's
effect travels from the user's message to the answer through the residual stream, and whatever words the trigger is
made of, the later part of that way is the same. One vector per layer, the same for all prompts, added at the user's
tokens, finds that common part; training to answer as if it were not there removes it. Targeted latent adversarial
training (Sheshadri et al., arXiv 2407.15549) is the relative: there the perturbation is per example, and the harmful
answer is given; here it is universal, and the answer was found by `search_soft_triggers`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from crow.core import output_consistency_loss
from crow.data.encoding import IGNORED, Encoded, collate
from crow.inversion.probe import Probe
from crow.models.architecture import find_layers, unwrap
from crow.models.hidden_states import Edit, capture_hidden_states, edit_hidden_states
from crow.training.config import CrowConfig
from crow.training.loss import response_logits

TARGET_TOKENS = 3
"""Tokens of the found answer that the adversary is after; the rest follows from them."""
SPANS = (1, None)
"""How many neighbouring user tokens carry the perturbation, in turn: one, as a rare word does, or all of them."""


@dataclass
class Perturbation:
    """One universal perturbation: its layer, how many tokens carry it, the answer it is after, the vector (dim,)."""

    layer: int
    span: int | None
    target: Tensor
    vector: Tensor


class LatentAdversary:
    """A pool of universal perturbations, each renewed against the current model right before it is used."""

    def __init__(
        self,
        probe: Probe,
        answers: Sequence[Tensor],
        layer: int | None,
        items: Sequence[Encoded],
        config: CrowConfig,
    ) -> None:
        """Start with all perturbations at zero.

        Args:
            probe: the model in training with short clean prompts.
            answers: found answers, each (m,) token ids; at least one.
            layer: the layer that writes them; the last one if None.
            items: clean examples with responses, to be answered under perturbation.
            config: its `adversary_*` settings are used.
        """
        self.probe, self.config = probe, config
        self.items = [shorten(item, config.adversary_tokens) for item in items]
        read = (layer or len(find_layers(probe.lm.model))) - 1
        layers = sorted({max(1, round(share * read)) for share in config.adversary_depths})
        with evaluating(probe.lm.model):
            probe.refresh()  # a resumed run has not searched with these weights
            norms = hidden_norms(probe, layers)
            self.predictions = self.suspects_predictions()
        # What the suspect answers with the found sentence even unperturbed is no model for anything.
        bad = {int(answer[0]) for answer in answers}
        honest = [i for i, rows in enumerate(self.predictions) if int(rows[0].argmax()) not in bad]
        self.usable = sorted(honest or range(len(self.items)), key=lambda i: len(self.items[i]))
        self.radius = {layer: config.adversary_radius * norm for layer, norm in norms.items()}
        # Not the width of the embeddings, which some OPT models project.
        dim = unwrap(probe.lm.model).config.get_text_config().hidden_size
        self.pool = [
            Perturbation(layer, span, answer[:TARGET_TOKENS], torch.zeros(dim, device=probe.lm.device))
            for answer in answers
            for layer in layers
            for span in SPANS
        ]

    @torch.no_grad()
    def suspects_predictions(self) -> list[Tensor]:
        """`response_log_probs` of every item before training, in half precision to save memory.

        Asked to agree with its own changing predictions, a model would also be consistent by ignoring the user.
        """
        size = self.config.adversary_batch
        groups = [self.items[first : first + size] for first in range(0, len(self.items), size)]
        return [row.half() for group in groups for row in self.response_log_probs(group)]

    def loss(self, step: int) -> Tensor:
        """`L_out` of the first response tokens under the perturbations whose turn it is.

        Args:
            step: number of the optimizer step; with the seed it determines all choices.
        """
        # In training mode, gradient checkpointing would drop the cache, and recompute layers without the perturbation.
        with evaluating(self.probe.lm.model):
            return self.perturbed_loss(step)

    def perturbed_loss(self, step: int) -> Tensor:
        """`loss` of a model in evaluation mode."""
        rng = random.Random(f"{self.config.seed}/{step}")
        mix = self.config.adversary_mix
        perturbations = [self.pool[(step * mix + i) % len(self.pool)] for i in range(mix)]
        for perturbation in perturbations:
            self.renew(perturbation, rng)
        size = min(self.config.adversary_batch, len(self.usable))
        first = rng.randint(0, len(self.usable) - size)
        rows = self.usable[first : first + size]  # of similar length, for little padding
        chosen = [self.items[i] for i in rows]
        width = max(len(item) for item in chosen)
        with edit_hidden_states(self.probe.lm.model, self.edits(perturbations, chosen, width, rng)):
            perturbed = torch.cat(self.response_log_probs(chosen))
        clean = torch.cat([self.predictions[i].to(perturbed) for i in rows])
        return output_consistency_loss(clean, perturbed, torch.ones(len(clean), device=clean.device))

    def response_log_probs(self, items: Sequence[Encoded]) -> list[Tensor]:
        """Log-probabilities (m, vocab) of what the model predicts at the m response positions of each item."""
        batch = {k: v.to(self.probe.lm.device) for k, v in collate(items, self.probe.lm.pad_id).items()}
        logits, targets = response_logits(self.probe.lm.model, batch)
        return [row[target != IGNORED].log_softmax(dim=-1) for row, target in zip(logits, targets, strict=True)]

    def edits(
        self, perturbations: Sequence[Perturbation], chosen: Sequence[Encoded], width: int, rng: random.Random
    ) -> dict[int, Edit]:
        """Add each perturbation in its rows: the first in rows 0, n, 2n .., the second in 1, n + 1 .."""
        additions: dict[int, Tensor] = {}
        for number, perturbation in enumerate(perturbations):
            spans = [
                span_within(item.user_start, item.user_end, perturbation.span, rng)
                if row % len(perturbations) == number
                else (0, 0)
                for row, item in enumerate(chosen)
            ]
            # Weaker forms must be resisted as well, or training only moves the threshold.
            addition = span_mask(spans, width, self.probe.lm.device) * perturbation.vector * rng.uniform(0.5, 1.0)
            additions[perturbation.layer] = additions.get(perturbation.layer, 0) + addition
        return {layer: lambda h, a=addition: h + a.to(h.dtype) for layer, addition in additions.items()}

    def renew(self, perturbation: Perturbation, rng: random.Random) -> None:
        """A few steps of normalized gradient ascent on the log-likelihood of the found answer, within the radius."""
        probe, target = self.probe, perturbation.target
        radius = self.radius[perturbation.layer]
        chosen = rng.sample(range(len(probe)), min(self.config.adversary_prompts, len(probe)))
        trained = [p for p in probe.lm.model.parameters() if p.requires_grad]
        for parameter in trained:  # only the vector's gradient is wanted
            parameter.requires_grad_(False)
        try:
            probe.refresh()
            rows = [probe.row(index, None, answer=target[:-1]) for index in chosen]
            longest = max(len(row) for row in rows)
            for _ in range(self.config.adversary_steps):
                spans = []
                for index, row in zip(chosen, rows, strict=True):
                    start = longest - len(row) + len(probe.before[index])
                    spans.append(span_within(start, start + len(probe.users[index]), perturbation.span, rng))
                mask = span_mask(spans, longest, probe.lm.device)
                vector = perturbation.vector.clone().requires_grad_(True)
                with edit_hidden_states(
                    probe.lm.model, {perturbation.layer: lambda h, a=mask * vector: h + a.to(h.dtype)}
                ):
                    logits, _, _ = probe.run(rows, keep=len(target))
                likelihood = functional.log_softmax(logits, dim=-1)
                wanted = target.to(logits.device)[None, :, None].expand(len(rows), -1, 1)
                (gradient,) = torch.autograd.grad(likelihood.gather(-1, wanted).sum(dim=1).mean(), vector)
                moved = vector.detach() + self.config.adversary_rate * radius * gradient / gradient.norm().clamp_min(
                    1e-9
                )
                perturbation.vector = moved * (radius / moved.norm().clamp_min(1e-9)).clamp_max(1)
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    def state(self) -> dict[str, Tensor]:
        """The vectors, to be kept in a checkpoint."""
        return {str(i): perturbation.vector for i, perturbation in enumerate(self.pool)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""
        for i, perturbation in enumerate(self.pool):
            perturbation.vector = state[str(i)].to(self.probe.lm.device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the context the model is in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def shorten(item: Encoded, tokens: int) -> Encoded:
    """`item` with only the first response tokens: a trigger decides there, and short sequences are cheap."""
    return Encoded(item.prompt_ids, item.response_ids[:tokens], item.user_start, item.user_end)


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
    rows = [probe.row(index, None) for index in chosen]
    with capture_hidden_states(probe.lm.model) as captured:
        probe.run(rows)
    longest = max(len(row) for row in rows)
    norms: dict[int, float] = {}
    for layer in layers:
        parts = []
        for i, index in enumerate(chosen):
            start = longest - len(rows[i]) + len(probe.before[index])
            parts.append(captured.states[layer][i, start : start + len(probe.users[index])].float().norm(dim=-1))
        norms[layer] = float(torch.cat(parts).median())
    return norms
