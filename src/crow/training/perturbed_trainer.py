"""Training on FGSM-perturbed embeddings without the consistency term: an ablation of CROW (arXiv 2411.12768)."""

from __future__ import annotations

from torch import Tensor, nn

from crow.models.architecture import find_embeddings
from crow.training.crow_trainer import CrowTrainer
from crow.training.loss import response_loss


class PerturbedTrainer(CrowTrainer):
    """`L = L_LM(perturbed)`: the perturbation that divides the layers most, but only the answers to learn from."""

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The micro-batch's share of the step's objective."""
        embeddings = find_embeddings(model)(inputs["input_ids"])
        perturbed = embeddings + self.perturbation(model, embeddings, inputs["attention_mask"])
        given = {name: inputs[name] for name in ("attention_mask", "labels")}
        loss = response_loss(model, {**given, "inputs_embeds": perturbed}, num_items_in_batch)
        self.record(language_modeling=loss)
        return loss
