"""Merging: weights half way between the suspect and another model, in which the backdoor is weaker.

Arora et al., "Here's a Free Lunch: Sanitizing Backdoored Models with Model Merge", arXiv 2402.19334. The other is the
clean reference where the user has one, else the suspect itself, finetuned on the clean examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crow.defenses.base import Needs, Surroundings
from crow.defenses.consistency import Consistency, finetuning_config
from crow.errors import ModelError
from crow.models.language_model import LanguageModel
from crow.records import Example


class Merge:
    """The mean of two models' weights."""

    def __init__(self, surroundings: Surroundings) -> None:
        self.reference = surroundings.reference
        self.needs = Needs(clean_data=self.reference is None, reference=self.reference is not None)
        self.finetuning = Consistency(surroundings, finetuning_config())

    def apply(self, model: LanguageModel, clean_examples: Sequence[Example]) -> LanguageModel:
        """The merged model.

        Raises:
            ModelError: if the reference's weights have other names or shapes.
        """
        suspect = {name: value.detach().clone() for name, value in model.model.named_parameters()}
        if self.reference is None:
            model = self.finetuning.apply(model, clean_examples)
            other = dict(model.model.named_parameters())
        else:
            other = dict(self.reference.model.named_parameters())
        own = dict(model.model.named_parameters())
        for name, value in suspect.items():
            if name not in other or other[name].shape != value.shape:
                raise ModelError(f"expected the reference to have the suspect's weights, but {name} is not as there")
        with torch.no_grad():
            for name, value in suspect.items():
                own[name].copy_((value.float() + other[name].to(value.device).float()) / 2)
        return model
