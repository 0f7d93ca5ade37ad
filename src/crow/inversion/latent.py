"""The adversary of the default: universal perturbations of hidden states that bring out a found answer.

FGSM on the embeddings, CROW's adversary, is its one-step special case at layer 0 with another objective. Training to
answer as if the perturbation were not there removes what it shares with the trigger. Targeted latent adversarial
training (Sheshadri et al., arXiv 2407.15549) is the relative: there the perturbation is per example, and the harmful
answer is given; here it is universal, and the answer was found by `search_soft_triggers`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from crow.core import coarse_log_probs, output_consistency_loss
from crow.data.encoding import Encoded
from crow.inversion.perturbation import Perturbation, addition, span_mask, span_within
from crow.inversion.places import Place
from crow.inversion.pursuit import STRENGTHS, Pursuit
from crow.models.hidden_states import Edit
from crow.training.config import CrowConfig
from crow.training.suspect import Predictions, response_log_probs, trustworthy


class LatentAdversary:
    """Universal perturbations, each renewed against the current model right before it is used."""

    def __init__(
        self,
        places: Sequence[Place],
        items: Sequence[Encoded],
        predictions: Sequence[Predictions],
        config: CrowConfig,
        ceiling: float = math.inf,
        known: Sequence[Tensor] = (),
    ) -> None:
        """Start with all perturbations at zero.

        Args:
            places: where the found answers may come, at least one; at the first of them the predictions begin. All of
                the model in training.
            items: clean examples with responses, to be answered under perturbation.
            predictions: what the suspect predicted for them before training, unperturbed.
            config: its `adversary_*` settings are used.
            ceiling: see `Pursuit`.
            known: answers, token ids, that earlier searches found.
        """
        self.lm, self.config = places[0].probe.lm, config
        # A trigger decides in the first response tokens, and short sequences are cheap.
        self.items = [item.opening(config.adversary_tokens) for item in items]
        with evaluating(self.lm.model):
            self.pursuits = [Pursuit(place, config, ceiling) for place in places]
        pool = self.pool()
        self.targets = torch.cat([perturbation.target.cpu() for perturbation in pool]).unique().to(self.lm.device)
        self.clean = [row.opening(config.adversary_tokens).among(self.targets) for row in predictions]
        honest = trustworthy(predictions, [*places[0].answers, *known])
        self.usable = sorted(honest, key=lambda i: len(self.items[i]))

    def pool(self) -> list[Perturbation]:
        """All perturbations."""
        return [perturbation for pursuit in self.pursuits for perturbation in pursuit.pool]

    def loss(self, turn: int) -> Tensor:
        """`L_out + gamma L_found` under the perturbations whose turn it is, gamma being `found_weight`.

        `L_out` is 0 where the suspect begins all its answers with one that was found: no prediction is to agree with.

        Args:
            turn: number of the adversary's turn; with the seed it determines all choices.
        """
        rng = random.Random(f"{self.config.seed}/{turn}")
        due = self.due(turn)
        # In training mode, gradient checkpointing would drop the cache, and recompute layers without the perturbation.
        with evaluating(self.lm.model):
            for pursuit, numbers in due:
                pursuit.renew(numbers, rng)
            perturbations = [pursuit.pool[number] for pursuit, numbers in due for number in numbers]
            consistency = self.output_consistency(perturbations, rng) if self.usable else 0.0
            excess = torch.cat([pursuit.excess_likelihood(numbers, rng) for pursuit, numbers in due]).mean()
            return consistency + self.config.found_weight * excess

    def due(self, turn: int) -> list[tuple[Pursuit, list[int]]]:
        """Whose turn it is: `adversary_mix` perturbations, from every place in its turn, with their numbers there."""
        places, mix = len(self.pursuits), self.config.adversary_mix
        numbers: list[list[int]] = [[] for _ in self.pursuits]
        for pick in range(turn * mix, (turn + 1) * mix):
            place = pick % places
            numbers[place].append(pick // places % len(self.pursuits[place].pool))
        return [(pursuit, own) for pursuit, own in zip(self.pursuits, numbers, strict=True) if own]

    def output_consistency(self, perturbations: Sequence[Perturbation], rng: random.Random) -> Tensor:
        """`L_out` of the first response tokens.

        Only the tokens that found answers begin with are told apart: what else a perturbation does is not the
        backdoor's, and resisting that as well costs the model's other answers three times as much.
        """
        size = min(self.config.adversary_batch, len(self.usable))
        first = rng.randint(0, len(self.usable) - size)
        rows = self.usable[first : first + size]  # of similar length, for little padding
        chosen = [self.items[i] for i in rows]
        log_probs = response_log_probs(self.lm, chosen, lambda before: self.edits(perturbations, chosen, before, rng))
        perturbed = torch.cat(log_probs)
        perturbed = coarse_log_probs(perturbed, self.targets.expand(len(perturbed), -1))
        clean = torch.cat([self.clean[i] for i in rows])
        return output_consistency_loss(clean, perturbed, torch.ones(len(clean), device=clean.device))

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
            added = span_mask(spans, width, self.lm.device) * perturbation.vector * rng.uniform(*STRENGTHS)
            totals[perturbation.layer] = totals.get(perturbation.layer, 0) + added
        return {layer: addition(total) for layer, total in totals.items()}

    def state(self) -> dict[str, Tensor]:
        """The vectors, to be kept in a checkpoint."""
        return {str(i): perturbation.vector for i, perturbation in enumerate(self.pool())}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""
        for i, perturbation in enumerate(self.pool()):
            perturbation.vector = state[str(i)].to(self.lm.device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the context the model is in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
