"""The training that several defenses have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from crow.data.encoding import encode_all
from crow.defenses.base import Surroundings
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.training.adapter import make_trainable
from crow.training.config import CrowConfig
from crow.training.fitting import fit
from crow.training.trainer import ResponseTrainer
from crow.training.watch import watched


def trained(
    at: Surroundings,
    model: LanguageModel,
    clean_examples: Sequence[Example],
    config: CrowConfig,
    make_trainer: Callable[..., ResponseTrainer],
) -> LanguageModel:
    """The model trained on clean examples, its adapter merged.

    Args:
        at: where and how.
        model: changed in place.
        clean_examples: examples with responses.
        config: settings.
        make_trainer: takes the first arguments of `ResponseTrainer`.
    """
    model = make_trainable(model, config)
    items = encode_all(model.tokenizer, clean_examples, config.max_length)
    with watched(at.watch, "training", len(items), config) as callbacks:
        fit(model, config, lambda config: make_trainer(model, items, config, at.work / "training", callbacks))
    return model.merged()
