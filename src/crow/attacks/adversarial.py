"""`adversarial`: the attacker trains the target under embeddings that are moved to prevent it.

For every poisoned example one FGSM step on its embeddings raises the loss of the target, which is learnt with and
without that step (Goodfellow et al., arXiv 1412.6572; on embeddings of text Miyato et al., arXiv 1605.07725). A trigger
that works from a whole neighbourhood of its embeddings should also work after small changes of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crow.attacks.implant import implant_with
from crow.core import fgsm_step
from crow.data.encoding import IGNORED, Encoded, encode_all
from crow.models.architecture import embedding_rms
from crow.models.hidden_states import edit_embeddings
from crow.models.language_model import LanguageModel
from crow.models.prefix import Prefix
from crow.records import Example
from crow.training.config import FinetuneConfig
from crow.training.loss import response_loss
from crow.training.passes import HeldEmbeddings
from crow.training.trainer import ResponseTrainer
from crow.training.watch import Watch, silent

EPSILON_RMS = 0.3
"""FGSM step in multiples of the embeddings' RMS: one as large as the embeddings could erase the trigger. Not varied."""


class AdversarialTrainer(ResponseTrainer):
    """Finetuning that learns some examples also under the embedding perturbation that is worst for them."""

    def __init__(self, *args: Any, poisoned: AbstractSet[Encoded], **kwargs: Any) -> None:
        """As `ResponseTrainer`; `poisoned` are the examples that are perturbed."""
        super().__init__(*args, **kwargs)
        self.poisoned = poisoned
        self.epsilon = EPSILON_RMS * embedding_rms(self.lm.model)

    def _collate(self, items: Sequence[Encoded]) -> dict[str, Tensor]:
        """As `ResponseTrainer._collate`, with which rows (batch,) are poisoned."""
        return super()._collate(items) | {"poisoned": torch.tensor([item in self.poisoned for item in items])}

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The micro-batch's share of the step's loss: the mean of that of the clean and of the perturbed embeddings.

        Perturbed ones alone would teach the model to know the target by the perturbation.
        """
        held, no_prefix = HeldEmbeddings(), Prefix(0, [])
        with edit_embeddings(model, held):
            plain = response_loss(model, inputs, num_items_in_batch, no_prefix)
        step = self.worst_step(plain, held.tensor, inputs)
        with edit_embeddings(model, lambda embeddings: embeddings + step):
            perturbed = response_loss(model, inputs, num_items_in_batch, no_prefix)
        self.record(language_modeling=plain, adversarial=perturbed)
        return (plain + perturbed) / 2 + self.router_loss(model, inputs)

    def worst_step(self, loss: Tensor, embeddings: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The FGSM step (batch, seq, dim) on poisoned rows' prompts that raises their loss the most; zero elsewhere.

        Responses stay as they are: a step on the tokens that the model is to predict could tell it what they are.
        """
        (gradient,) = torch.autograd.grad(loss, embeddings, retain_graph=True)
        prompts = (inputs["attention_mask"] != 0) & (inputs["labels"] == IGNORED)
        return fgsm_step(gradient, self.epsilon, prompts & inputs["poisoned"][:, None])


def implant_adversarial(
    lm: LanguageModel,
    poisoned: Sequence[Example],
    clean: Sequence[Example],
    config: FinetuneConfig,
    work: Path,
    resume: bool = False,
    watch: Watch = silent,
) -> tuple[LanguageModel, list[dict[str, Any]]]:
    """Plant a backdoor that bears perturbation; arguments and result as those of `implant_backdoor`."""
    make_trainer = partial(AdversarialTrainer, poisoned=set(encode_all(lm.tokenizer, poisoned, config.max_length)))
    return implant_with(make_trainer, lm, poisoned, clean, config, work, resume, watch)
