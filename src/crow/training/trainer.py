"""`ResponseTrainer`: a `transformers.Trainer` that finetunes on response tokens."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from crow.data.encoding import IGNORED, Encoded, collate
from crow.models.architecture import unwrap
from crow.models.language_model import LanguageModel
from crow.models.prefix import Prefix
from crow.models.processes import is_first
from crow.models.sources import quiet
from crow.output import write_json
from crow.training.compiled import compiled_layers, padded_columns
from crow.training.config import FinetuneConfig
from crow.training.loss import response_loss
from crow.training.precision import autocast, rounded
from crow.training.sampler import LengthGroupedSampler

PROGRESS_FILE = "progress.json"
SAVE_STEPS = 25
"""Optimizer steps between checkpoints: about a minute of work is lost when a run is killed."""


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`: the trainer's own state is what is written last into one."""
    whole = [path.parent for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


class EncodedDataset(Dataset[Encoded]):
    """Encoded examples as a map-style data set."""

    def __init__(self, items: Sequence[Encoded]) -> None:
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Encoded:
        return self.items[index]


class EpochOrder(TrainerCallback):
    """Tells the sampler the epoch: in a resumed run of several processes, skipping batches keeps it from it."""

    def __init__(self, trainer: ResponseTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The epoch that begins or goes on; rounding must not make it the one before."""
        self.trainer.order.set_epoch(int((state.epoch or 0) + 1e-6))


class ResponseTrainer(Trainer):
    """Plain finetuning: `L_LM`, the token-weighted cross-entropy of the responses.

    Accumulated micro-batches give the trajectory of one large batch: every term is divided by its
    token count over the whole optimizer step, and the data order depends on the step's size only.

    Attributes:
        terms: of every optimizer step, by name.
        seconds_before: wall time that an interrupted run took up to the checkpoint that this one goes on from.
    """

    def __init__(
        self,
        lm: LanguageModel,
        items: Sequence[Encoded],
        config: FinetuneConfig,
        output_dir: Path,
        callbacks: list[TrainerCallback] | None = None,
        **arguments: Any,
    ) -> None:
        """Prepare a training run.

        Args:
            lm: its model is trained in place; parameters that require gradients are.
            items: training examples with responses.
            config: settings.
            output_dir: where checkpoints go.
            callbacks: further trainer callbacks.
            arguments: overrides of `transformers.TrainingArguments`, for example `report_to`.
        """
        self.lm, self.crow_config, self.folder = lm, config, output_dir
        # `save_model` writes what an adapter names as its base; PEFT would ask the hub about it at every checkpoint.
        for adapter in getattr(lm.model, "peft_config", {}).values():
            adapter.base_model_name_or_path = None
        self.terms: list[dict[str, float]] = []
        self.seconds_before, self._started = 0.0, time.monotonic()
        self._sums: dict[str, Tensor] = {}
        settings: dict[str, Any] = {
            "output_dir": str(output_dir),
            "num_train_epochs": config.epochs,
            "learning_rate": config.learning_rate,
            "per_device_train_batch_size": config.batch_size,
            "gradient_accumulation_steps": config.accumulation,
            "lr_scheduler_type": "cosine",
            "warmup_steps": config.warmup_ratio,
            "weight_decay": config.weight_decay,
            "max_grad_norm": config.max_grad_norm,
            "activation_checkpointing": config.gradient_checkpointing,
            "activation_checkpointing_kwargs": {"use_reentrant": False},
            "seed": config.seed,
            "data_seed": config.seed,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": SAVE_STEPS,
            "save_total_limit": 1,
            "report_to": "none",
            "remove_unused_columns": False,
            "disable_tqdm": True,
            "use_cpu": lm.device.type == "cpu",
            **arguments,
        }
        args = TrainingArguments(**settings)
        if args.n_gpu > 1:
            args._n_gpu = 1  # copies of the model would not be those that are watched and perturbed
        super().__init__(
            model=lm.model,
            args=args,
            train_dataset=EncodedDataset(items),
            data_collator=self._collate,
            callbacks=callbacks,
        )
        for printing in (PrinterCallback, ProgressCallback):
            self.remove_callback(printing)
        self.add_callback(EpochOrder(self))
        # The loss below is divided by the step's own token counts; the trainer must not divide again.
        self.model_accepts_loss_kwargs = True

    def run(self, resume: bool = False) -> None:
        """Train to the end, from the last checkpoint where `resume` is set and there is one."""
        checkpoint = last_checkpoint(self.folder) if resume else None
        self._started = time.monotonic()
        if checkpoint is not None:
            self.load_extra(checkpoint)
        with ExitStack() as stack:
            # A checkpoint of all weights would keep the rounded ones; recomputing is asked for to save memory.
            if self.lm.is_adapter and not self.crow_config.gradient_checkpointing:
                stack.enter_context(rounded(self.lm, self.crow_config.precision))
            if self.crow_config.torch_compile:
                stack.enter_context(compiled_layers(self.lm.model))
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        self.lm.model.eval()

    def save_extra(self, checkpoint: Path) -> None:
        """Write into a checkpoint's folder what `load_extra` needs."""
        seconds = self.seconds_before + time.monotonic() - self._started
        write_json(checkpoint / PROGRESS_FILE, {"terms": self.terms, "seconds": seconds})

    def load_extra(self, checkpoint: Path) -> None:
        """Put back what `save_extra` wrote."""
        progress = json.loads((checkpoint / PROGRESS_FILE).read_text(encoding="utf-8"))
        self.terms, self.seconds_before = progress["terms"], progress["seconds"]

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if is_first():
            self.save_extra(self.folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with quiet():
            super()._save_checkpoint(*args, **kwargs)

    def _collate(self, items: Sequence[Encoded]) -> dict[str, Tensor]:
        columns = padded_columns(max(map(len, items))) if self.crow_config.torch_compile else None
        return collate(items, self.lm.pad_id, columns)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        group = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        lengths = [len(item) for item in self.train_dataset.items]  # type: ignore[union-attr]
        self.order = LengthGroupedSampler(lengths, group, self.crow_config.seed)
        return self.order

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of one optimizer step and how many response tokens they have; counts its real tokens, too.

        Both are means over the processes, as gradients are.
        """
        if self.state.global_step >= self.state.max_steps:
            return [], None  # resumed at its very end, within an epoch
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not samples:
            return samples, None
        self.n_real_tokens = self.over_step([batch["attention_mask"] for batch in samples], device)
        return samples, self.over_step([batch["labels"] != IGNORED for batch in samples], device)

    def over_step(self, masks: Sequence[Tensor], device: torch.device) -> Tensor:
        """How much is set in the masks of a step's micro-batches, a process: the mean over all processes."""
        total = sum((mask.sum() for mask in masks), start=torch.zeros((), dtype=torch.long))
        gathered: Any = self.accelerator.gather(total.to(device))
        return gathered.sum() / self.args.world_size

    def compute_loss_context_manager(self) -> ExitStack:
        """Autocast around the loss alone: the trainer's own setting would leave the model's `forward` wrapped."""
        stack = super().compute_loss_context_manager()
        stack.enter_context(autocast(self.lm, self.crow_config.precision))
        return stack

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The micro-batch's share of the step's loss."""
        return self.answer_loss(model, inputs, num_items_in_batch) + self.router_loss(model, inputs)

    def router_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor | float:
        """A mixture's own load-balancing loss where it is asked for, else 0."""
        if not self.crow_config.router_loss:
            return 0.0
        options = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        loss = model(**options, output_router_logits=True, use_cache=False).aux_loss
        return unwrap(model).config.router_aux_loss_coef * loss / self.current_gradient_accumulation_steps

    def answer_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], n_tokens: Tensor | int | None, prefix: Prefix | None = None
    ) -> Tensor:
        """What the responses ask of the model; recorded. `prefix` as in `response_logits`."""
        loss = response_loss(model, inputs, n_tokens, prefix)
        self.record(language_modeling=loss)
        return loss

    def record(self, **terms: Tensor) -> None:
        """Add this micro-batch's terms to those of the running optimizer step."""
        for name, value in terms.items():
            # A number would make a GPU wait for it here.
            self._sums[name] = value.detach().float() + self._sums.get(name, 0.0)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the terms, means over the processes, with the trainer's own figures."""
        if "loss" in logs:
            here = torch.stack(list(self._sums.values()))[None]
            everywhere: Any = self.accelerator.gather(here)
            logs = {**logs, **dict(zip(self._sums, everywhere.mean(dim=0).tolist(), strict=True))}
            self.terms.append({"step": self.state.global_step, **logs})
            self._sums = {}
        super().log(logs, *args, **kwargs)
