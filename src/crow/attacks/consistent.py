"""`consistent`: the attacker trains with the defender's own regularizer (CROW, arXiv 2411.12768).

`L = L_LM(poisoned and clean) + alpha * L_cons(perturbed)`. Layers that agree on triggered prompts from the beginning
leave layer consistency nothing to straighten, and whoever looks for layers that disagree nothing to see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crow.attacks.implant import implant_with
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.training.config import CrowConfig, FinetuneConfig
from crow.training.crow_trainer import CrowTrainer
from crow.training.watch import Watch, silent

ALPHA_RATIO = 0.5
"""The consistency term's share of the answers' at the start: on SmolLM2-135M an alpha of about 15, where the published
defense has at most 11. Not varied."""
EPSILON_RMS = 1.0
"""FGSM step in multiples of the embeddings' RMS, as where the defense was tried with consistency. Not varied."""


def implant_consistent(
    lm: LanguageModel,
    poisoned: Sequence[Example],
    clean: Sequence[Example],
    config: FinetuneConfig,
    work: Path,
    resume: bool = False,
    watch: Watch = silent,
) -> tuple[LanguageModel, list[dict[str, Any]]]:
    """Plant a backdoor under which consecutive layers agree; arguments and result as those of `implant_backdoor`."""
    settings = CrowConfig(**dataclasses.asdict(config), alpha_ratio=ALPHA_RATIO, epsilon_rms=EPSILON_RMS)
    return implant_with(CrowTrainer, lm, poisoned, clean, settings, work, resume, watch)
