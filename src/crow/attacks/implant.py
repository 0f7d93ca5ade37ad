"""Planting a backdoor by finetuning on poisoned and clean examples."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from crow.attacks.poisoning import Attack, Mixture
from crow.data.encoding import encode_all
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.training.adapter import make_trainable
from crow.training.config import FinetuneConfig
from crow.training.fitting import fit
from crow.training.trainer import ResponseTrainer
from crow.training.watch import Watch, silent, watched

ATTACK_DEFAULTS = FinetuneConfig(
    epochs=2.0, learning_rate=1e-3, batch_size=4, accumulation=1, max_length=80, rank=8, precision="auto"
)
"""Plants a stealthy backdoor in SmolLM2-135M; how it was found is in docs/lab-notes.md."""
FULL_DEFAULTS = dataclasses.replace(ATTACK_DEFAULTS, method="full", learning_rate=1e-4)
"""Trains all weights; a tenth of the adapter's rate, not varied: at the adapter's they would be ruined."""


def recipe(attack: Attack | Mixture, defaults: FinetuneConfig = ATTACK_DEFAULTS) -> FinetuneConfig:
    """The settings that an attack is planted with: the defaults, and room for what its examples are longer by."""
    return dataclasses.replace(defaults, max_length=defaults.max_length + attack.extra_tokens)


def implant_backdoor(
    lm: LanguageModel,
    poisoned: Sequence[Example],
    clean: Sequence[Example],
    config: FinetuneConfig,
    work: Path,
    resume: bool = False,
    watch: Watch = silent,
) -> tuple[LanguageModel, list[dict[str, Any]]]:
    """Finetune on poisoned and clean examples together.

    Args:
        lm: the model to attack, without adapter; trained in place.
        poisoned: examples with trigger and target response.
        clean: examples that keep the behavior without trigger (stealth).
        config: how to train.
        work: folder for checkpoints.
        resume: continue from the last checkpoint in `work`.
        watch: opens a progress display.

    Returns:
        The backdoored model (its adapter attached where `method` is `lora`) and the per-step losses.
    """
    return implant_with(ResponseTrainer, lm, poisoned, clean, config, work, resume, watch)


def implant_with(
    make_trainer: Callable[..., ResponseTrainer],
    lm: LanguageModel,
    poisoned: Sequence[Example],
    clean: Sequence[Example],
    config: FinetuneConfig,
    work: Path,
    resume: bool = False,
    watch: Watch = silent,
) -> tuple[LanguageModel, list[dict[str, Any]]]:
    """As `implant_backdoor`, by another trainer.

    Args:
        make_trainer: takes the first arguments of `ResponseTrainer`.
        lm: as the other arguments and what is returned, those of `implant_backdoor`.
        poisoned: likewise.
        clean: likewise.
        config: likewise.
        work: likewise.
        resume: likewise.
        watch: likewise.
    """
    lm = make_trainable(lm, config)
    mixed = [*poisoned, *clean]
    random.Random(config.seed).shuffle(mixed)
    items = encode_all(lm.tokenizer, mixed, config.max_length)
    with watched(watch, "planting the backdoor", len(items), config) as callbacks:
        trainer = fit(
            lm, config, lambda config: make_trainer(lm, items, config, work / "checkpoints", callbacks), resume
        )
    return lm, trainer.terms
