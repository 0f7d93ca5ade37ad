"""Neural attention distillation: the suspect learns to attend as a finetuned copy of itself does.

Li et al., "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks", arXiv 2101.05930. The
attention map of a layer is, as there, what its activations weigh at each place, `A(H) = sum_d H_d^2`, of unit norm.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from crow.defenses.base import Needs, Surroundings
from crow.defenses.consistency import Consistency, finetuning_config
from crow.defenses.trained import trained
from crow.models.architecture import find_layers
from crow.models.hidden_states import capture_hidden_states
from crow.models.language_model import LanguageModel
from crow.models.prefix import Prefix
from crow.records import Example
from crow.training.loss import cross_entropy_sum, response_logits
from crow.training.trainer import ResponseTrainer

WEIGHT = 1000.0
"""Of the distance between the maps, which are small numbers; the paper's range for its larger maps is 500 to 5000."""
DEPTHS = (0.25, 0.5, 0.75, 1.0)


def attention_map(hidden: Tensor, mask: Tensor) -> Tensor:
    """`A(H) / |A(H)|` (batch, seq) of hidden states (batch, seq, dim), zero at padding."""
    weights = hidden.float().pow(2).sum(dim=-1).masked_fill(mask == 0, 0)
    return weights / weights.norm(dim=-1, keepdim=True).clamp_min(1e-9)


def attention_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Mean over layers and rows of `|A(student) - A(teacher)|^2`, a scalar in [0, 4]."""
    pairs = zip(student, teacher, strict=True)
    gaps = [(attention_map(s, mask) - attention_map(t, mask)).pow(2).sum(dim=-1).mean() for s, t in pairs]
    return torch.stack(gaps).mean()


class DistillationTrainer(ResponseTrainer):
    """`L = L_LM + weight * attention distance to the teacher`."""

    def __init__(self, *args: Any, teacher: nn.Module, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher
        depth = len(find_layers(self.lm.model))
        self.layers = sorted({max(1, round(share * depth)) for share in DEPTHS})

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The micro-batch's share of the step's objective."""
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad(), capture_hidden_states(self.teacher) as wanted:
            self.teacher(**given, use_cache=False)
        with capture_hidden_states(model) as own:
            logits, targets = response_logits(model, inputs, Prefix(0, []))
        count = num_items_in_batch if num_items_in_batch is not None else (inputs["labels"] >= 0).sum()
        loss = cross_entropy_sum(logits, targets) / count
        student, teacher = ([states.states[layer] for layer in self.layers] for states in (own, wanted))
        distance = attention_distance(student, teacher, inputs["attention_mask"])
        distance = distance / self.current_gradient_accumulation_steps
        self.record(language_modeling=loss, distillation=distance)
        return loss + WEIGHT * distance


class Nad:
    """Finetunes a teacher, then the suspect towards its attention."""

    needs = Needs(clean_data=True)

    def __init__(self, surroundings: Surroundings) -> None:
        self.surroundings = surroundings
        teaching = dataclasses.replace(surroundings, work=surroundings.work / "teacher")
        # Of all layers: where neither model can change, there is nothing to distil.
        self.config = dataclasses.replace(finetuning_config(), trained_from=0.0)
        self.finetuning = Consistency(teaching, self.config)

    def apply(self, model: LanguageModel, clean_examples: Sequence[Example]) -> LanguageModel:
        """The distilled model; for a while there are two in memory."""
        at = self.surroundings
        original = dataclasses.replace(model, model=copy.deepcopy(model.model))
        teacher = self.finetuning.apply(original, clean_examples).model.eval()
        config = dataclasses.replace(self.config, seed=at.seed)
        return trained(at, model, clean_examples, config, partial(DistillationTrainer, teacher=teacher))
