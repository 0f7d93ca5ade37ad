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

from crow.core import fgsm_perturbation
from crow.models.architecture import find_embeddings
from crow.models.hidden_states import capture_hidden_states
from crow.training.crow_trainer import CrowTrainer
from crow.training.loss import cross_entropy_sum
from crow.training.sampler import LengthGroupedSampler
from crow.training.trainer import ResponseTrainer


class LiteralTrainer(CrowTrainer):
    """`L_LM(clean) + alpha L_cons(perturbed)` term by term, nothing shared."""

    def answers_and_consistency(
        self, model: nn.Module, inputs: dict[str, Tensor], n_tokens: Any
    ) -> tuple[Tensor, Tensor]:
        """The two terms in three passes."""
        embeddings = find_embeddings(model)(inputs["input_ids"]).detach()
        mask = inputs["attention_mask"]
        step = fgsm_perturbation(embeddings, lambda moved: self.divided(model, moved, mask), self.epsilon, mask)
        consistency = self.divided(model, embeddings + step, mask)
        logits = model(input_ids=inputs["input_ids"], attention_mask=mask, use_cache=False).logits.float()
        answers = cross_entropy_sum(logits[:, :-1], inputs["labels"][:, 1:]) / n_tokens
        self.record(language_modeling=answers)
        return answers, consistency

    def divided(self, model: nn.Module, embeddings: Tensor, mask: Tensor) -> Tensor:
        """`L_cons` of a pass over embeddings."""
        with capture_hidden_states(model) as captured:
            model(inputs_embeds=embeddings, attention_mask=mask, use_cache=False)
        states = torch.stack(captured.states).float()
        distances = 1 - functional.cosine_similarity(states[1:], states[:-1], dim=-1)
        return (distances * mask).sum() / (mask.sum() * len(distances))


class Ungrouped(ResponseTrainer):
    """Batches in random order."""

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        order = super()._get_train_sampler(train_dataset)
        order.group_size = 1  # groups of one are shuffled as any examples are, whatever their lengths
        return order


class PublishedTrainer(Ungrouped, LiteralTrainer):
    """The same passes as published."""

    def divided(self, model: nn.Module, embeddings: Tensor, mask: Tensor) -> Tensor:
        """The consistency loss of a pass over embeddings, padding and all."""
        output = model(inputs_embeds=embeddings, output_hidden_states=True, use_cache=False)
        states = torch.stack(output.hidden_states)
        distances = 1 - functional.cosine_similarity(states[2:-1], states[1:-2], dim=-1)
        return distances.mean()
