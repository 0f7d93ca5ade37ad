"""crow removes backdoors from large language models and shows how well it worked.

The public names are loaded on first use, so that reading records and writing reports needs no tensor library.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Attack": "crow.attacks.poisoning",
    "CrowConfig": "crow.training.config",
    "CrowError": "crow.errors",
    "CrowTrainer": "crow.training.crow_trainer",
    "Example": "crow.records",
    "LanguageModel": "crow.models.language_model",
    "Rate": "crow.records",
    "attack_success": "crow.evaluation.success",
    "collapse_score": "crow.core",
    "consistency_loss": "crow.core",
    "crow_loss": "crow.core",
    "fgsm_perturbation": "crow.core",
    "get_preset": "crow.training.presets",
    "implant_backdoor": "crow.attacks.implant",
    "layer_consistency": "crow.core",
    "load_examples": "crow.data.loading",
    "load_model": "crow.models.loading",
    "perplexity": "crow.evaluation.perplexity",
    "poison": "crow.attacks.poisoning",
    "purify": "crow.defenses.purification",
    "search_soft_triggers": "crow.inversion.consensus",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 a literal list would repeat the table above


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'crow' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
