"""Fine-pruning: neurons that clean data leaves dormant are cut, then the model is finetuned on it.

Liu, Dolan-Gavitt, Garg, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks", RAID 2018. A
neuron is here one of the inner ones of a layer's feed-forward part: an input of its down projection.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from crow.data.encoding import collate, encode_all, length_batches
from crow.defenses.base import Needs, Surroundings
from crow.defenses.consistency import Consistency, finetuning_config
from crow.errors import ArchitectureError
from crow.models.architecture import find_layers, model_type, unwrap
from crow.models.language_model import LanguageModel
from crow.models.linear import Matrix, matrices, watch_inputs
from crow.records import Example

SHARE = 0.2
"""Of the neurons of each layer."""
BATCH = 8
MAX_LENGTH = 256


class FinePruning:
    """Cuts a fifth of the neurons of every layer, then finetunes."""

    needs = Needs(clean_data=True)

    def __init__(self, surroundings: Surroundings) -> None:
        self.finetuning = Consistency(surroundings, finetuning_config())

    def apply(self, model: LanguageModel, clean_examples: Sequence[Example]) -> LanguageModel:
        """The pruned and finetuned model.

        Raises:
            ArchitectureError: where the feed-forward part is no linear module, as in a mixture of experts.
        """
        dormant = self.dormant(model, clean_examples)
        cut(model, dormant)
        model = self.finetuning.apply(model, clean_examples)
        cut(model, dormant)  # what was cut has been trained on, too
        return model

    @torch.no_grad()
    def dormant(self, model: LanguageModel, clean_examples: Sequence[Example]) -> list[torch.Tensor]:
        """For each layer the numbers of the neurons that are smallest on clean examples."""
        model.model.eval()
        downs = [down_projection(model, layer) for layer in find_layers(model.model)]
        items = encode_all(model.tokenizer, clean_examples, MAX_LENGTH)
        totals = [torch.zeros(down.weight.shape[-1], device=model.device) for down in downs]
        for rows in length_batches([len(item) for item in items], BATCH):
            batch = collate([items[i] for i in rows], model.pad_id)
            inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
            numbered = [Matrix(str(number), down.weight, down.module) for number, down in enumerate(downs)]
            with watch_inputs(numbered, inputs["attention_mask"] != 0) as seen:
                model.model(**inputs, use_cache=False)
            totals = [total + seen.sizes[str(number)] for number, total in enumerate(totals)]
        return [total.argsort()[: round(SHARE * len(total))] for total in totals]


@torch.no_grad()
def cut(model: LanguageModel, neurons: Sequence[torch.Tensor]) -> None:
    """Zero the columns of each layer's down projection that these neurons feed."""
    for layer, numbers in zip(find_layers(model.model), neurons, strict=True):
        down_projection(model, layer).weight[:, numbers] = 0


def down_projection(model: LanguageModel, layer: torch.nn.Module) -> Matrix:
    """The matrix from a layer's inner neurons back to its hidden states, outside of attention.

    Raises:
        ArchitectureError: if no linear module there has more inputs than hidden states have dimensions, or there are
            experts beside it.
    """
    dim = unwrap(model.model).config.get_text_config().hidden_size
    every = matrices(layer)
    found = [
        matrix
        for matrix in every
        if matrix.module and "att" not in matrix.name and matrix.weight.shape[0] == dim < matrix.weight.shape[1]
    ]
    if not found or any(matrix.module is None for matrix in every):
        raise ArchitectureError(
            f"expected a down projection in the layers of model type {model_type(model.model)!r}, found none; "
            "fine-pruning needs a feed-forward part of linear modules"
        )
    return max(found, key=lambda matrix: matrix.weight.shape[1])
