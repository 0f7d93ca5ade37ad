"""BEEAR: what a universal drift of the embeddings could make of the model is trained away, drift after drift.

Zeng et al., "BEEAR: Embedding-based Adversarial Removal of Safety Backdoors in Instruction-tuned Language Models",
arXiv 2406.17092. The inner problem there is given examples of the unwanted behavior; here nobody knows it, so the drift
is after whatever is farthest from the clean answers.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crow.data.encoding import Encoded
from crow.defenses.base import Needs, Surroundings
from crow.defenses.consistency import finetuning_config
from crow.defenses.trained import trained
from crow.inversion.latent import evaluating
from crow.inversion.perturbation import addition, zero_vector
from crow.inversion.probe import frozen
from crow.models.architecture import find_layers
from crow.models.hidden_states import Edit
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.training.crow_trainer import CrowTrainer
from crow.training.suspect import response_log_probs

DEPTH = 9 / 32
"""The paper's layer 9 of Llama-2-7B's 32."""
TOKENS = 5
"""Last tokens of the prompt that drift, as in the paper."""
STEPS, RATE = 10, 0.2
"""Of the inner ascent; a step's length in radii."""
RADIUS = 1.0
"""Largest drift of a token, in multiples of the median norm of the hidden states at the examples' prompts."""
BATCH = 5


class UniversalDrift:
    """One drift (tokens, dim), the same for all prompts, renewed before every step of the outer training."""

    def __init__(self, lm: LanguageModel, items: Sequence[Encoded], seed: int) -> None:
        self.lm, self.items, self.seed = lm, items, seed
        self.layer = max(1, round(DEPTH * len(find_layers(lm.model))))
        self.drift = torch.stack([zero_vector(lm)] * TOKENS)
        self.radius = RADIUS * self.median_norm()

    def median_norm(self) -> float:
        """Median norm of the hidden states that drift."""
        seen: list[Tensor] = []

        def look(hidden: Tensor, chosen: Sequence[Encoded], before: int) -> Tensor:
            for row, item in enumerate(chosen):
                end = len(item.prompt_ids) - before
                seen.append(hidden[row, max(0, end - TOKENS) : end].float().norm(dim=-1))
            return hidden

        chosen = self.items[:BATCH]
        with torch.no_grad(), evaluating(self.lm.model):
            response_log_probs(
                self.lm, chosen, lambda before: {self.layer: lambda hidden: look(hidden, chosen, before)}
            )
        return float(torch.cat(seen).median())

    def loss(self, turn: int) -> Tensor:
        """`L_LM` of some clean answers under the worst drift found, the outer objective."""
        rng = random.Random(f"{self.seed}/{turn}")
        chosen = rng.sample(self.items, min(BATCH, len(self.items)))
        with evaluating(self.lm.model):
            with frozen(self.lm.model):
                for _ in range(STEPS):
                    drift = self.drift.clone().requires_grad_(True)
                    (gradient,) = torch.autograd.grad(self.answers_loss(chosen, drift), drift)
                    unit = gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-9)
                    moved = self.drift + RATE * self.radius * unit
                    norms = moved.norm(dim=-1, keepdim=True).clamp_min(1e-9)
                    self.drift = moved * (self.radius / norms).clamp_max(1)
            return self.answers_loss(chosen, self.drift)

    def answers_loss(self, chosen: Sequence[Encoded], drift: Tensor) -> Tensor:
        """Mean cross-entropy of the chosen examples' responses with the drift at the end of their prompts."""
        width = max(len(item) for item in chosen)

        def edits(before: int) -> dict[int, Edit]:
            added = []
            for item in chosen:
                place = torch.zeros(width - before, len(drift), device=drift.device)
                last = len(item.prompt_ids) - before
                for number in range(min(TOKENS, last)):
                    place[last - 1 - number, TOKENS - 1 - number] = 1
                added.append(place @ drift)
            return {self.layer: addition(torch.stack(added))}

        rows = response_log_probs(self.lm, chosen, edits)
        losses = [
            -row.gather(1, torch.tensor(item.response_ids, device=row.device)[:, None])
            for row, item in zip(rows, chosen, strict=True)
        ]
        return torch.cat(losses).mean()

    def state(self) -> dict[str, Tensor]:
        """The drift, to be kept in a checkpoint."""
        return {"drift": self.drift}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""
        self.drift = state["drift"].to(self.lm.device)


class Beear:
    """Finetuning on the clean examples, drifting and not."""

    needs = Needs(clean_data=True)

    def __init__(self, surroundings: Surroundings) -> None:
        self.surroundings = surroundings

    def apply(self, model: LanguageModel, clean_examples: Sequence[Example]) -> LanguageModel:
        """The trained model, its adapter merged."""
        at = self.surroundings
        config = dataclasses.replace(
            finetuning_config(), seed=at.seed, adversary_every=1, adversary_weight=1.0, trained_from=0.0
        )

        def make_trainer(lm: LanguageModel, items: Sequence[Encoded], *others: Any) -> CrowTrainer:
            return CrowTrainer(lm, items, *others, adversary=UniversalDrift(lm, items, at.seed))

        return trained(at, model, clean_examples, config, make_trainer)
