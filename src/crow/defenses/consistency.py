"""CROW in its forms: the default of this project, the published one, its two ablations (arXiv 2411.12768).

Plain finetuning is the same training without any of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from crow.defenses.base import Needs, Surroundings
from crow.defenses.purification import purify
from crow.defenses.trained import trained
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.training.config import CrowConfig
from crow.training.perturbed_trainer import PerturbedTrainer
from crow.training.presets import get_preset


def finetuning_config() -> CrowConfig:
    """The data, layers and steps of the default, and nothing but the clean answers to learn from."""
    return dataclasses.replace(get_preset("default"), rounds=0, self_distillation=0.0, interpolation=1.0)


def unperturbed_config() -> CrowConfig:
    """The published settings with consistency on clean embeddings (the paper's ablation)."""
    return dataclasses.replace(get_preset("paper"), epsilon=0.0)


class Consistency:
    """`purify` with given settings."""

    needs = Needs(clean_data=True)

    def __init__(self, surroundings: Surroundings, config: CrowConfig) -> None:
        self.surroundings, self.config = surroundings, config

    def apply(self, model: LanguageModel, clean_examples: Sequence[Example]) -> LanguageModel:
        """The purified model, its adapter merged."""
        at = self.surroundings
        config = dataclasses.replace(self.config, seed=at.seed, samples=len(clean_examples))
        result = purify(model, clean_examples, config, at.work, watch=at.watch)
        if config.rounds:
            at.searches.update(before=result.before, after=result.after)
        return result.lm.merged()


class PerturbationOnly:
    """The paper's other ablation: the perturbation of CROW, and the clean answers to learn under it."""

    needs = Needs(clean_data=True)

    def __init__(self, surroundings: Surroundings) -> None:
        self.surroundings = surroundings

    def apply(self, model: LanguageModel, clean_examples: Sequence[Example]) -> LanguageModel:
        """The trained model, its adapter merged."""
        at = self.surroundings
        config = dataclasses.replace(get_preset("paper"), seed=at.seed)
        return trained(at, model, clean_examples, config, PerturbedTrainer)
