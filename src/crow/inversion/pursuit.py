"""Universal perturbations that are after found answers in one place, renewed against the model in training."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from crow.inversion.perturbation import Perturbation, ascend, hidden_norms, log_likelihood, zero_vector
from crow.inversion.places import Place
from crow.inversion.probe import Probe, frozen
from crow.models.architecture import find_layers
from crow.training.config import CrowConfig

SPANS = (1, None)
"""How many neighbouring user tokens carry the perturbation, in turn: one, as a rare word does, or all of them."""
OPENING_TOKENS = 6
"""Tokens of a found answer that must not become likely; enough to tell it from an honest one that begins alike."""
HONEST = 0.75
"""At least this share of the clean prompts is taken to be answered without the backdoor .."""
SAID = math.log(0.5)
""".. unless the suspect gives the answer on more of them, each with this log-likelihood or more. It leaks, then .."""
UNLIKELY = -10.0
""".. and what it says sets no standard: this log-likelihood an answer may have that is never to be given."""
MANY = 2
"""More answers than these share the adversary's turns."""
STRENGTHS = (0.5, 1.0)
"""Shares of a perturbation that are resisted: weaker forms as well, or training only moves the threshold."""


class Pursuit:
    """A pool of universal perturbations after the answers in one place.

    Attributes:
        probe: the place's.
        pool: one perturbation for every answer, layer and span.
        openings: of each, what of its answer must not become likely, token ids.
        limits: of each, the log-likelihood (prompts,) that its opening may have.
        radius: largest norm of a vector in each layer.
    """

    def __init__(self, place: Place, config: CrowConfig, ceiling: float = math.inf) -> None:
        """Start with all perturbations at zero; the model is at rest, and as the training finds it.

        Args:
            place: where the answers would come.
            config: its `adversary_*` settings are used.
            ceiling: log-likelihood that no answer may have under a perturbation, however likely it is before.
        """
        self.probe, self.config = place.probe, config
        depth = len(find_layers(self.probe.lm.model))
        layers = sorted({min(max(1, round(share * depth)), depth - 1) for share in config.adversary_depths})
        self.probe.refresh()  # a resumed run has not searched with these weights
        norms = hidden_norms(self.probe, layers)
        self.radius = {layer: config.adversary_radius * norm for layer, norm in norms.items()}
        self.pool = [
            Perturbation(layer, span, answer[: max(config.adversary_aims)], zero_vector(self.probe.lm))
            for answer in place.answers
            for layer in layers
            for span in SPANS
        ]
        each = len(layers) * len(SPANS)
        openings = [worded(self.probe.lm.tokenizer, answer[:OPENING_TOKENS]) for answer in place.answers]
        self.openings = [opening for opening in openings for _ in range(each)]
        limits = [likelihoods(self.probe, opening) for opening in openings]
        # A prompt that the suspect answers so anyway sets no standard.
        most = [float(found.quantile(HONEST)) for found in limits]
        most = [min(UNLIKELY if value >= SAID else value, ceiling) for value in most]
        limits = [found.clamp_max(value) for found, value in zip(limits, most, strict=True)]
        self.limits = [found for found in limits for _ in range(each)]
        if len(place.answers) > MANY:
            # Not all of many come to a turn, and in order those of the last answers would not.
            order = random.Random(config.seed).sample(range(len(self.pool)), len(self.pool))
            self.pool = [self.pool[i] for i in order]
            self.openings = [self.openings[i] for i in order]
            self.limits = [self.limits[i] for i in order]

    def renew(self, numbers: Sequence[int], rng: random.Random) -> None:
        """A few steps up the likelihood of what the found answers begin with, against the model as it is now."""
        probe, config = self.probe, self.config
        chosen = self.draw_prompts(rng)
        perturbations = [self.pool[number] for number in numbers]
        aimed = [dataclasses.replace(p, target=p.target[: rng.choice(config.adversary_aims)]) for p in perturbations]
        radii = [self.radius[p.layer] for p in aimed]
        with frozen(probe.lm.model):
            probe.refresh()
            ascend(probe, aimed, chosen, radii, config.adversary_rate, config.adversary_steps, rng)
        for perturbation, moved in zip(perturbations, aimed, strict=True):
            perturbation.vector = moved.vector

    def excess_likelihood(self, numbers: Sequence[int], rng: random.Random) -> Tensor:
        """Of each perturbation (n,), how much likelier it makes its answer than the suspect finds it, a token.

        `mean_i max(0, log p(t | i, d) - log p_suspect(t | i)) / k` over prompts i, t being the k tokens that an
        answer begins with. Without it an answer that begins as honest ones do, "I'm sorry", survives: its first
        tokens may stay as likely as they were. Of a short answer they are those up to its last word: with its full stop
        and its end among them, these alone would be made unlikely, and the words stay.
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
        return ((found - limits).clamp_min(0) / lengths[:, None]).mean(dim=1)

    def draw_prompts(self, rng: random.Random) -> list[int]:
        """Numbers of the prompts for one ascent or one loss."""
        return rng.sample(range(len(self.probe)), min(self.config.adversary_prompts, len(self.probe)))


def worded(tokenizer: PreTrainedTokenizerBase, answer: Tensor) -> Tensor:
    """An answer (m,) up to its last token with a letter or digit; all of it where there is none."""
    texts = [str(tokenizer.decode([token], skip_special_tokens=True)) for token in answer.tolist()]
    words = [m for m, text in enumerate(texts, start=1) if re.search(r"\w", text)]
    return answer[: max(words, default=len(texts))]


@torch.no_grad()
def likelihoods(probe: Probe, answer: Tensor) -> Tensor:
    """Log-likelihood (prompts,) of an answer after each of the probe's prompts, unperturbed."""
    nothing = [Perturbation(0, None, answer, zero_vector(probe.lm))]
    return torch.cat([log_likelihood(probe, nothing, batch)[0] for batch in probe.batches()])
