"""`CrowTrainer`: `L = L_LM(clean) + alpha * L_cons(perturbed)` (CROW, arXiv 2411.12768, algorithm 1)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crow.core import coarse_log_probs, consistency_loss, crow_loss, fgsm_step, output_consistency_loss
from crow.data.encoding import IGNORED, Encoded
from crow.models.architecture import embedding_rms, find_layers, is_spread
from crow.models.hidden_states import Edit, capture_hidden_states, edit_embeddings
from crow.models.interpolation import interpolate, trained_weights
from crow.models.prefix import Prefix
from crow.models.processes import agreed, is_first
from crow.output import write_json
from crow.training.config import CrowConfig, require
from crow.training.loss import response_logits, response_loss
from crow.training.passes import HeldEmbeddings, KeptPerturbations, consistency_pass, perturbation, settled
from crow.training.suspect import Predictions
from crow.training.trainer import ResponseTrainer

ALPHA_FILE = "alpha.json"
ADVERSARY_FILE = "adversary.safetensors"
PERTURBATIONS_FILE = "perturbations.safetensors"
ALPHA_EXAMPLES = 16


class Adversary(Protocol):
    """Something that makes the model misbehave, renewed as the model changes."""

    def loss(self, turn: int) -> Tensor:
        """The loss of the model on clean answers under the adversary, at that turn of its."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep of it."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""
        ...


class CrowTrainer(ResponseTrainer):
    """Finetuning that keeps consecutive layers agreeing under the embedding perturbation that divides them most.

    Attributes:
        alpha: the absolute weight in use; with `alpha_ratio` it is measured when the run starts.
        epsilon: the absolute step in use.
    """

    crow_config: CrowConfig

    def __init__(
        self,
        *args: Any,
        adversary: Adversary | None = None,
        suspect: Mapping[Encoded, Predictions] | None = None,
        **kwargs: Any,
    ) -> None:
        """As `ResponseTrainer`, with a `CrowConfig`.

        Args:
            args: of `ResponseTrainer`.
            adversary: adds its loss, once in every optimizer step whose turn it is.
            suspect: what the suspect predicted for the examples, wanted where `self_distillation` is above zero; one
                without predictions is learnt from its response alone.
            kwargs: of `ResponseTrainer`.

        Raises:
            ConfigError: if `layers` names a layer that the model has not.
        """
        super().__init__(*args, **kwargs)
        self.adversary = adversary
        self.suspect = suspect if self.crow_config.self_distillation else None
        self._adversary_due = False
        config = self.crow_config
        several = config.keep_perturbation and self.args.world_size > 1
        # An example's next visit may be on another process, which does not have its perturbation.
        require(not several, "keep_perturbation", "on one process only", self.args.world_size)
        self.kept = KeptPerturbations()
        self._numbers = {item: number for number, item in enumerate(self.train_dataset.items)}  # type: ignore[union-attr]
        depth = len(find_layers(self.lm.model))
        for layer in config.layers or ():
            require(1 <= layer <= depth, "layers", f"in 1..{depth}", layer)
        self.layers = config.layers
        if config.layers is None and config.inner_layers and depth > 2:
            self.layers = tuple(range(2, depth))
        # A ratio of zero needs no measuring.
        self.alpha = 0.0 if config.alpha_ratio == 0 else config.alpha
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
        terms = {}
        if self.alpha:
            total, consistency = self.answers_and_consistency(model, inputs, num_items_in_batch)
            weight = inputs["attention_mask"].sum() / self.n_real_tokens
            loss = crow_loss(total, consistency * weight, self.alpha)
            terms["consistency"], total = loss.consistency, loss.total
        else:
            total = self.answer_loss(model, inputs, num_items_in_batch)
        total = total + self.router_loss(model, inputs)
        if self.adversary is not None and self._adversary_due:
            self._adversary_due = False
            terms["adversarial"] = self.adversary.loss(self.state.global_step // self.crow_config.adversary_every)
            total = total + self.crow_config.adversary_weight * terms["adversarial"]
        self.record(**terms)
        return total

    def _collate(self, items: Sequence[Encoded]) -> dict[str, Tensor]:
        """As `ResponseTrainer._collate`, with the suspect's predictions for all rows' responses, one after another."""
        batch = super()._collate(items)
        if self.crow_config.keep_perturbation:
            batch["numbers"] = torch.tensor([self._numbers[item] for item in items])
        if self.suspect:
            some = next(iter(self.suspect.values()))
            rows = [self.suspect.get(item) or some.nothing(len(item.response_ids)) for item in items]
            batch["suspect_tokens"] = torch.cat([row.tokens for row in rows]).cpu()
            batch["suspect_log_probs"] = torch.cat([row.log_probs for row in rows]).cpu()
            batch["suspect_known"] = torch.cat([torch.full((len(i.response_ids),), i in self.suspect) for i in items])
        return batch

    def answers_and_consistency(
        self, model: nn.Module, inputs: dict[str, Tensor], n_tokens: Tensor | int | None
    ) -> tuple[Tensor, Tensor]:
        """`L_LM` of the clean input and `L_cons` of the perturbed one, unweighted.

        Two passes: the clean one gives the FGSM step as well. With `keep_perturbation` one: both terms are taken at
        the perturbation that the example's last visit gave, and the step's own backward pass gives the next. Three
        where weights are spread over processes: they are gone from here after the first of two backward passes.
        """
        mask = inputs["attention_mask"]
        if self.crow_config.keep_perturbation:
            numbers = inputs["numbers"].tolist()

            def perturb(embeddings: Tensor) -> Tensor:
                step = self.kept.step(numbers, mask, embeddings, self.epsilon)
                moved = HeldEmbeddings()(embeddings + step)
                moved.register_hook(lambda gradient: self.kept.renew(numbers, mask, gradient))
                return moved

            return self.observed_answers(model, inputs, n_tokens, perturb)
        if self.epsilon and is_spread(model):
            return self.answer_loss(model, inputs, n_tokens), self.perturbed_consistency(model, inputs)
        held = HeldEmbeddings()
        answers, consistency = self.observed_answers(model, inputs, n_tokens, held)
        if not self.epsilon:
            return answers, consistency
        (gradient,) = torch.autograd.grad(consistency, held.tensor, retain_graph=True)
        step = fgsm_step(gradient, self.epsilon, mask)
        if self.lm.is_adapter:
            # The first pass's activations are gone before the second. All weights' gradients would take more than they.
            del held, consistency
            answers = settled(answers, model.parameters())
        return answers, consistency_pass(model, inputs, self.layers, lambda embeddings: embeddings + step)

    def observed_answers(
        self, model: nn.Module, inputs: dict[str, Tensor], n_tokens: Tensor | int | None, edit: Edit
    ) -> tuple[Tensor, Tensor]:
        """`answer_loss` and `L_cons` of one pass with edited embeddings."""
        with edit_embeddings(model, edit), capture_hidden_states(model) as captured:
            answers = self.answer_loss(model, inputs, n_tokens, Prefix(0, []))
        return answers, consistency_loss(captured.states, inputs["attention_mask"], self.layers)

    def answer_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], n_tokens: Tensor | int | None, prefix: Prefix | None = None
    ) -> Tensor:
        """`(1 - s) CE(response) + s (KL + w KL_opening)`, s being `self_distillation` where predictions are known.

        KL is the mean of `KL(suspect || model)` over all response tokens, KL_opening that over the first ones of every
        response: two means, so that w, `opening_weight`, says the same of long and of short responses.
        """
        if "suspect_tokens" not in inputs:
            return super().answer_loss(model, inputs, n_tokens, prefix)
        logits, targets = response_logits(model, inputs, prefix)
        labelled = targets != IGNORED
        log_probs = logits[labelled].log_softmax(dim=-1)
        known, kept = inputs["suspect_known"], inputs["suspect_log_probs"]
        present = coarse_log_probs(log_probs, inputs["suspect_tokens"])
        config = self.crow_config
        opening = first_columns(labelled, config.adversary_tokens)[labelled]
        count, n_opening = (len(known), opening.sum()) if n_tokens is None else (n_tokens, self.n_opening_tokens)
        weights = known * (1 / count + config.opening_weight * opening / n_opening)
        agreement = output_consistency_loss(kept, present, weights) * weights.sum()
        share = config.self_distillation
        reference = -log_probs.gather(-1, targets[labelled][:, None])[:, 0]
        self.record(language_modeling=reference.sum() / count, self_distillation=agreement)
        return (reference * (1 - share * known)).sum() / count + share * agreement

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of one optimizer step, in which the adversary's turn comes once or not at all.

        Counts the tokens of the step that responses open with.
        """
        step, config = self.state.global_step, self.crow_config
        in_time = step < config.adversary_until * self.state.max_steps
        self._adversary_due = in_time and step % config.adversary_every == 0
        samples, n_labels = super().get_batch_samples(epoch_iterator, num_batches, device)
        tokens = config.adversary_tokens
        self.n_opening_tokens = self.over_step([first_columns(b["labels"] != IGNORED, tokens) for b in samples], device)
        return samples, n_labels

    def save_extra(self, checkpoint: Path) -> None:
        """As `ResponseTrainer.save_extra`, with the adversary's state."""
        super().save_extra(checkpoint)
        if self.adversary is not None:
            save_file(self.adversary.state(), checkpoint / ADVERSARY_FILE)
        if self.kept.signs:
            save_file(self.kept.state(), checkpoint / PERTURBATIONS_FILE)

    def load_extra(self, checkpoint: Path) -> None:
        """Put back what `save_extra` wrote."""
        super().load_extra(checkpoint)
        if self.adversary is not None:
            self.adversary.restore(load_file(checkpoint / ADVERSARY_FILE))
        if (checkpoint / PERTURBATIONS_FILE).is_file():
            self.kept.restore(load_file(checkpoint / PERTURBATIONS_FILE))

    def run(self, resume: bool = False) -> None:
        """As `ResponseTrainer.run`, with what comes before and after the steps.

        An `alpha_ratio` becomes an absolute alpha first, once for the whole run. After the last step the trained
        weights go back by what `interpolation` leaves of their way.
        """
        state = self.folder / ALPHA_FILE
        if self.alpha is None and resume and state.is_file():
            self.alpha = float(json.loads(state.read_text())["alpha"])
        if self.alpha is None:
            self.alpha = self.measure_alpha()
            self.alpha = agreed(self.alpha)
            if is_first():
                write_json(state, {"alpha": self.alpha})
        share = self.crow_config.interpolation
        # A resumed run reads its checkpoint later: these are the weights before the first step in any case.
        start = trained_weights(self.lm.model) if share < 1 else {}
        super().run(resume)
        if start:
            interpolate(self.lm.model, start, share)

    def measure_alpha(self) -> float:
        """`alpha_ratio * L_LM / L_cons` over the first examples, before any step."""
        ratio = self.crow_config.alpha_ratio
        assert ratio is not None
        self.lm.model.eval()
        items = self.train_dataset.items[:ALPHA_EXAMPLES]  # type: ignore[union-attr]
        language_modeling = consistency = 0.0
        for item in items:
            inputs = {name: value.to(self.lm.device) for name, value in self._collate([item]).items()}
            with torch.no_grad():
                language_modeling += float(response_loss(self.lm.model, inputs))
            consistency += float(self.perturbed_consistency(self.lm.model, inputs).detach())
        return ratio * language_modeling / max(consistency, 1e-12)

    def perturbed_consistency(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """`L_cons` at the FGSM-perturbed embeddings, in two passes of its own."""
        step = perturbation(model, inputs, self.layers, self.epsilon)
        return consistency_pass(model, inputs, self.layers, lambda embeddings: embeddings + step)


def first_columns(labelled: Tensor, count: int) -> Tensor:
    """Of each row of a boolean mask (batch, seq), the first `count` columns that are set."""
    return labelled & (labelled.cumsum(dim=1) <= count)
