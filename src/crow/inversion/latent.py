"""The adversary of the default: universal perturbations of hidden states that bring out a found answer.

FGSM on the embeddings, CROW's adversary, is its one-step special case at layer 0 with another objective. Training to
answer as if the perturbation were not there removes what it shares with the trigger. Targeted latent adversarial
training (Sheshadri et al., arXiv 2407.15549) is the relative: there the perturbation is per example, and the harmful
answer is given; here it is universal, and the answer was found by `search_soft_triggers`.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from crow.core import coarse_log_probs, output_consistency_loss
from crow.data.encoding import Encoded
from crow.inversion.perturbation import (
    TARGET_TOKENS,
    Perturbation,
    addition,
    ascend,
    hidden_norms,
    log_likelihood,
    span_mask,
    span_within,
    zero_vector,
)
from crow.inversion.probe import Probe, frozen
from crow.models.architecture import find_layers
from crow.models.hidden_states import Edit
from crow.training.config import CrowConfig
from crow.training.suspect import Predictions, response_log_probs, trustworthy

SPANS = (1, None)
"""How many neighbouring user tokens carry the perturbation, in turn: one, as a rare word does, or all of them."""
OPENING_TOKENS = 6
"""Tokens of a found answer that must not become likely; enough to tell it from an honest one that begins alike."""
HONEST = 0.75
"""At least this share of the clean prompts is taken to be answered without the backdoor."""
STRENGTHS = (0.5, 1.0)
"""Shares of a perturbation that are resisted: weaker forms as well, or training only moves the threshold."""


class LatentAdversary:
    """A pool of universal perturbations, each renewed against the current model right before it is used."""

    def __init__(
        self,
        probe: Probe,
        answers: Sequence[Tensor],
        items: Sequence[Encoded],
        predictions: Sequence[Predictions],
        config: CrowConfig,
        ceiling: float = math.inf,
    ) -> None:
        """Start with all perturbations at zero.

        Args:
            probe: the model in training with short clean prompts.
            answers: found answers, each (m,) token ids; at least one.
            items: clean examples with responses, to be answered under perturbation.
            predictions: what the suspect predicted for them before training, unperturbed.
            config: its `adversary_*` settings are used.
            ceiling: log-likelihood that no found answer may have under a perturbation, however likely the suspect
                finds it.
        """
        self.probe, self.config = probe, config
        self.items = [shorten(item, config.adversary_tokens) for item in items]
        depth = len(find_layers(probe.lm.model))
        layers = sorted({min(max(1, round(share * depth)), depth - 1) for share in config.adversary_depths})
        with evaluating(probe.lm.model):
            probe.refresh()  # a resumed run has not searched with these weights
            norms = hidden_norms(probe, layers)
        self.targets = torch.cat([answer[:TARGET_TOKENS] for answer in answers]).unique().to(probe.lm.device)
        self.clean = [row.opening(config.adversary_tokens).among(self.targets) for row in predictions]
        honest = trustworthy(predictions, answers)
        self.usable = sorted(honest or range(len(self.items)), key=lambda i: len(self.items[i]))
        self.radius = {layer: config.adversary_radius * norm for layer, norm in norms.items()}
        self.pool = [
            Perturbation(layer, span, answer[:TARGET_TOKENS], zero_vector(probe.lm))
            for answer in answers
            for layer in layers
            for span in SPANS
        ]
        self.openings = [answer[:OPENING_TOKENS] for answer in answers for _ in layers for _ in SPANS]
        with evaluating(probe.lm.model):
            limits = [likelihoods(probe, answer[:OPENING_TOKENS]) for answer in answers]
        # A prompt that the suspect answers so anyway sets no standard.
        limits = [found.clamp_max(min(float(found.quantile(HONEST)), ceiling)) for found in limits]
        self.limits = [found for found in limits for _ in layers for _ in SPANS]

    def loss(self, turn: int) -> Tensor:
        """`L_out + gamma L_found` under the perturbations whose turn it is, gamma being `found_weight`.

        Args:
            turn: number of the adversary's turn; with the seed it determines all choices.
        """
        rng = random.Random(f"{self.config.seed}/{turn}")
        mix = self.config.adversary_mix
        numbers = [(turn * mix + i) % len(self.pool) for i in range(mix)]
        # In training mode, gradient checkpointing would drop the cache, and recompute layers without the perturbation.
        with evaluating(self.probe.lm.model):
            self.renew([self.pool[number] for number in numbers], rng)
            consistency = self.output_consistency(numbers, rng)
            return consistency + self.config.found_weight * self.excess_likelihood(numbers, rng)

    def output_consistency(self, numbers: Sequence[int], rng: random.Random) -> Tensor:
        """`L_out` of the first response tokens.

        Only the tokens that found answers begin with are told apart: what else a perturbation does is not the
        backdoor's, and resisting that as well costs the model's other answers three times as much.
        """
        perturbations = [self.pool[number] for number in numbers]
        size = min(self.config.adversary_batch, len(self.usable))
        first = rng.randint(0, len(self.usable) - size)
        rows = self.usable[first : first + size]  # of similar length, for little padding
        chosen = [self.items[i] for i in rows]
        log_probs = response_log_probs(
            self.probe.lm, chosen, lambda before: self.edits(perturbations, chosen, before, rng)
        )
        perturbed = torch.cat(log_probs)
        perturbed = coarse_log_probs(perturbed, self.targets.expand(len(perturbed), -1))
        clean = torch.cat([self.clean[i] for i in rows])
        return output_consistency_loss(clean, perturbed, torch.ones(len(clean), device=clean.device))

    def excess_likelihood(self, numbers: Sequence[int], rng: random.Random) -> Tensor:
        """`L_found`: how much likelier the found answers are than the suspect finds them unperturbed, a token.

        `mean_i max(0, log p(t | i, d) - log p_suspect(t | i)) / k` over prompts i, t being the k tokens that an
        answer begins with. Without it an answer that begins as honest ones do, "I'm sorry", survives: its first
        tokens may stay as likely as they were.
        """
        chosen = self.draw_prompts(rng)
        strength = rng.uniform(*STRENGTHS)
        at_work = [
            dataclasses.replace(self.pool[i], target=self.openings[i], vector=self.pool[i].vector * strength)
            for i in numbers
        ]
        found = log_likelihood(self.probe, at_work, chosen, rng)
        limits = torch.stack([self.limits[i][chosen] for i in numbers])
        lengths = torch.tensor([len(self.openings[i]) for i in numbers], device=found.device)
        return ((found - limits).clamp_min(0) / lengths[:, None]).mean()

    def edits(
        self, perturbations: Sequence[Perturbation], chosen: Sequence[Encoded], before: int, rng: random.Random
    ) -> dict[int, Edit]:
        """Add each perturbation in its rows: the first in rows 0, n, 2n .., the second in 1, n + 1 ..

        Args:
            perturbations: those at work.
            chosen: the examples of the rows.
            before: columns that are left out, all before the users' messages.
            rng: draws spans and strength.
        """
        width = max(len(item) for item in chosen) - before
        totals: dict[int, Tensor] = {}
        for number, perturbation in enumerate(perturbations):
            spans = [
                span_within(item.user_start - before, item.user_end - before, perturbation.span, rng)
                if row % len(perturbations) == number
                else (0, 0)
                for row, item in enumerate(chosen)
            ]
            added = span_mask(spans, width, self.probe.lm.device) * perturbation.vector * rng.uniform(*STRENGTHS)
            totals[perturbation.layer] = totals.get(perturbation.layer, 0) + added
        return {layer: addition(total) for layer, total in totals.items()}

    def renew(self, perturbations: Sequence[Perturbation], rng: random.Random) -> None:
        """A few steps up the likelihood of the found answers, against the model as it is now."""
        probe, config = self.probe, self.config
        chosen = self.draw_prompts(rng)
        radii = [self.radius[p.layer] for p in perturbations]
        with frozen(probe.lm.model):
            probe.refresh()
            ascend(probe, perturbations, chosen, radii, config.adversary_rate, config.adversary_steps, rng)

    def draw_prompts(self, rng: random.Random) -> list[int]:
        """Numbers of the prompts for one ascent or one loss."""
        return rng.sample(range(len(self.probe)), min(self.config.adversary_prompts, len(self.probe)))

    def state(self) -> dict[str, Tensor]:
        """The vectors, to be kept in a checkpoint."""
        return {str(i): perturbation.vector for i, perturbation in enumerate(self.pool)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""
        for i, perturbation in enumerate(self.pool):
            perturbation.vector = state[str(i)].to(self.probe.lm.device)


@torch.no_grad()
def likelihoods(probe: Probe, answer: Tensor) -> Tensor:
    """Log-likelihood (prompts,) of an answer after each of the probe's prompts, unperturbed."""
    nothing = [Perturbation(0, None, answer, zero_vector(probe.lm))]
    return torch.cat([log_likelihood(probe, nothing, batch)[0] for batch in probe.batches()])


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
