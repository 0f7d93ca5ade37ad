"""The training loop that CROW was published with (arXiv 2411.12768), written from its description, to measure against.

Three forward and three backward passes: one for the gradient of the consistency loss with respect to the embeddings,
one at the perturbed embeddings, one for the language-modelling loss; logits of every token in each, all hidden states
stacked. `PublishedTrainer` keeps what careful readers found in it: no attention mask in the consistency passes, padding
in their means, the first and the last transition left out, batches in random order padded to the longer example.
`LiteralTrainer` has the same passes with masks, pairs and weights right; its mathematics is crow's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import RandomSampler

from crow.data.encoding import IGNORED
from crow.models.architecture import find_embeddings
from crow.models.hidden_states import capture_hidden_states
from crow.training.crow_trainer import CrowTrainer


class LiteralTrainer(CrowTrainer):
    """`L_LM(clean) + alpha L_cons(perturbed)` term by term, nothing shared."""

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """The micro-batch's share of the step's objective."""
        embeddings = find_embeddings(model)(inputs["input_ids"]).detach().requires_grad_(True)
        mask = inputs["attention_mask"]
        (gradient,) = torch.autograd.grad(self.divided(model, embeddings, mask), embeddings)
        perturbed = embeddings.detach() + self.epsilon * gradient.sign() * mask.unsqueeze(-1)
        consistency = self.divided(model, perturbed, mask) * (mask.sum() / self.n_real_tokens)
        logits = model(input_ids=inputs["input_ids"], attention_mask=mask, use_cache=False).logits.float()
        targets = inputs["labels"][:, 1:].flatten()
        answers = functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum")
        answers = answers / (num_items_in_batch if num_items_in_batch is not None else (targets != IGNORED).sum())
        self.record(language_modeling=answers, consistency=consistency)
        assert self.alpha is not None
        return answers + self.alpha * consistency

    def divided(self, model: nn.Module, embeddings: Tensor, mask: Tensor) -> Tensor:
        """`L_cons` of a pass over embeddings."""
        with capture_hidden_states(model) as captured:
            model(inputs_embeds=embeddings, attention_mask=mask, use_cache=False)
        states = torch.stack(captured.states).float()
        distances = 1 - functional.cosine_similarity(states[1:], states[:-1], dim=-1)
        return (distances * mask).sum() / (mask.sum() * len(distances))


class PublishedTrainer(LiteralTrainer):
    """The same passes as published."""

    def divided(self, model: nn.Module, embeddings: Tensor, mask: Tensor) -> Tensor:
        """The consistency loss of a pass over embeddings, padding and all."""
        output = model(inputs_embeds=embeddings, output_hidden_states=True, use_cache=False)
        states = torch.stack(output.hidden_states)
        distances = 1 - functional.cosine_similarity(states[2:-1], states[1:-2], dim=-1)
        return distances.mean()

    def _get_train_sampler(self, train_dataset: Any = None) -> RandomSampler:  # type: ignore[override]
        generator = torch.Generator().manual_seed(self.crow_config.seed)
        return RandomSampler(self.train_dataset, generator=generator)  # type: ignore[arg-type]
