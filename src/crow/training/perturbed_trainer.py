"""Training on FGSM-perturbed embeddings without the consistency term: an ablation of CROW (arXiv 2411.12768)."""

from __future__ import annotations

from torch import Tensor, nn

from crow.models.hidden_states import edit_embeddings
from crow.models.prefix import Prefix
from crow.training.crow_trainer import CrowTrainer
from crow.training.loss import response_loss
from crow.training.passes import perturbation


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
        step = perturbation(model, inputs, self.layers, self.epsilon)
        with edit_embeddings(model, lambda embeddings: embeddings + step):
            loss = response_loss(model, inputs, num_items_in_batch, Prefix(0, []))
        self.record(language_modeling=loss)
        return loss
