"""How many examples are in the model at once: on a GPU all of an optimizer step, fewer where they do not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from crow.models.interpolation import put_weights, trained_weights
from crow.models.language_model import LanguageModel
from crow.models.processes import several
from crow.training.config import FinetuneConfig
from crow.training.crow_trainer import Adversary
from crow.training.trainer import ResponseTrainer

Config = TypeVar("Config", bound=FinetuneConfig)


def alone_on_gpu(device: torch.device) -> bool:
    """Whether this is the run's only process, and the device a GPU."""
    return device.type == "cuda" and not several()


def widened(config: Config, device: torch.device) -> Config:
    """The same optimizer steps in one pass each, on one GPU.

    With two examples at a time a GPU waits for Python to launch the next operation: a pass takes as long as with eight.
    A CPU has caches that they do not fit in.
    """
    if not alone_on_gpu(device):
        return config
    return dataclasses.replace(config, batch_size=config.batch_size * config.accumulation, accumulation=1)


def halved(config: Config) -> Config:
    """The same optimizer steps in micro-batches of half the size; of one example where they cannot be halved."""
    rows = config.batch_size // 2 if config.batch_size % 2 == 0 else 1
    return dataclasses.replace(config, batch_size=rows, accumulation=config.batch_size * config.accumulation // rows)


def fit(
    lm: LanguageModel,
    config: Config,
    make: Callable[[Config], ResponseTrainer],
    resume: bool = False,
    adversary: Adversary | None = None,
) -> ResponseTrainer:
    """Run a training, from its beginning in smaller micro-batches where a GPU's memory does not suffice.

    Args:
        lm: what is trained.
        config: settings; how a step is cut up does not change it beyond rounding.
        make: makes the trainer.
        resume: continue from the last checkpoint.
        adversary: what the trainer renews, to be put back as well.

    Returns:
        The trainer that has run.

    Raises:
        torch.OutOfMemoryError: if not even single examples fit.
    """
    config = widened(config, lm.device)
    divisible = alone_on_gpu(lm.device)
    weights = trained_weights(lm.model) if divisible else {}
    state = copies(adversary.state()) if divisible and adversary else {}
    while True:
        trainer = make(config)
        try:
            trainer.run(resume)
        except torch.OutOfMemoryError:
            if not divisible or config.batch_size == 1:
                raise
        else:
            return trainer
        del trainer
        torch.cuda.empty_cache()
        config = halved(config)
        put_weights(lm.model, weights)
        if adversary:
            adversary.restore(copies(state))


def copies(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors elsewhere in memory."""
    return {name: value.clone() for name, value in state.items()}
