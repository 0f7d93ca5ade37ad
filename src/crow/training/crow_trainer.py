"""`CrowTrainer`: `L = L_LM(clean) + alpha * L_cons(perturbed)` (CROW, arXiv 2411.12768, algorithm 1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crow.core import consistency_loss, crow_loss, fgsm_perturbation
from crow.models.architecture import embedding_rms, find_embeddings, find_layers
from crow.models.hidden_states import capture_hidden_states
from crow.output import write_json
from crow.training.config import CrowConfig, require
from crow.training.loss import response_loss
from crow.training.trainer import ResponseTrainer

ALPHA_FILE = "alpha.json"
ALPHA_EXAMPLES = 16


class CrowTrainer(ResponseTrainer):
    """Finetuning that keeps consecutive layers agreeing under the embedding perturbation that divides them most.

    Attributes:
        alpha: the absolute weight in use; with `alpha_ratio` it is measured when the run starts.
        epsilon: the absolute step in use.
    """

    crow_config: CrowConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As `ResponseTrainer`, with a `CrowConfig`.

        Raises:
            ConfigError: if `layers` names a layer that the model has not.
        """
        super().__init__(*args, **kwargs)
        config = self.crow_config
        depth = len(find_layers(self.lm.model))
        for layer in config.layers or ():
            require(1 <= layer <= depth, "layers", f"in 1..{depth}", layer)
        self.alpha = config.alpha
        rms = config.epsilon_rms
        self.epsilon = float(config.epsilon or 0.0) if rms is None else rms * embedding_rms(self.lm.model)

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The micro-batch's share of the step's objective."""
        language_modeling = self.language_modeling(model, inputs, num_items_in_batch)
        assert self.alpha is not None
        if self.alpha == 0:
            self.record(language_modeling=language_modeling)
            return language_modeling
        consistency = self.perturbed_consistency(model, inputs)
        loss = crow_loss(language_modeling, consistency, self.alpha)
        self.record(language_modeling=loss.language_modeling, consistency=loss.consistency)
        return loss.total

    def run(self, resume: bool = False) -> None:
        """As `ResponseTrainer.run`; an `alpha_ratio` becomes an absolute alpha first, once for the whole run."""
        state = Path(self.args.output_dir) / ALPHA_FILE
        if self.alpha is None and resume and state.is_file():
            self.alpha = float(json.loads(state.read_text())["alpha"])
        if self.alpha is None:
            self.alpha = self.measure_alpha()
            write_json(state, {"alpha": self.alpha})
        super().run(resume)

    def measure_alpha(self) -> float:
        """`alpha_ratio * L_LM / L_cons` over the first examples, before any step."""
        ratio = self.crow_config.alpha_ratio
        assert ratio is not None
        self.model.eval()
        items = self.train_dataset.items[:ALPHA_EXAMPLES]  # type: ignore[union-attr]
        language_modeling = consistency = 0.0
        for item in items:
            inputs = {name: value.to(self.lm.device) for name, value in self._collate([item]).items()}
            self.n_real_tokens = inputs["attention_mask"].sum()
            with torch.no_grad():
                language_modeling += float(response_loss(self.model, inputs))
            consistency += float(self.perturbed_consistency(self.model, inputs).detach())
        return ratio * language_modeling / max(consistency, 1e-12)

    def perturbed_consistency(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """`L_cons` at the FGSM-perturbed embeddings, weighted by the share of the step's real tokens."""
        mask = inputs["attention_mask"]
        embeddings = find_embeddings(model)(inputs["input_ids"])

        def loss(embeddings: Tensor) -> Tensor:
            with capture_hidden_states(model) as captured:
                model(inputs_embeds=embeddings, attention_mask=mask, use_cache=False, logits_to_keep=1)
            return consistency_loss(captured.states, mask, self.crow_config.layers)

        perturbation = fgsm_perturbation(embeddings, loss, self.epsilon, mask)
        return loss(embeddings + perturbation) * (mask.sum() / self.n_real_tokens)
