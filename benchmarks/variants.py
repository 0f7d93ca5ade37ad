"""The ways to train that `speed.py` times: the published loop, plain finetuning, crow, and each of its options."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass, field
from typing import Any

from published import LiteralTrainer, PublishedTrainer, Ungrouped
from torch import Tensor

from crow.models.hardware import multiplies_bfloat16
from crow.models.prefix import Prefix
from crow.training.config import CrowConfig
from crow.training.crow_trainer import CrowTrainer
from crow.training.footprint import CPU
from crow.training.presets import get_preset
from crow.training.trainer import ResponseTrainer

OURS = dataclasses.replace(get_preset("paper"), precision="float32", epochs=1.0)
STEP = OURS.batch_size * OURS.accumulation
"""Examples of an optimizer step: the published settings, micro-batches of two."""
WIDE = dataclasses.replace(OURS, batch_size=STEP, accumulation=1)
"""All of them in one pass: the trajectory is the same. On a CPU they no longer fit into its caches."""


class SeparateTrainer(CrowTrainer):
    """crow without what it shares: the FGSM step has a pass of its own."""

    def answers_and_consistency(self, model: Any, inputs: Any, n_tokens: Any) -> tuple[Tensor, Tensor]:
        """The two terms in three passes."""
        return self.answer_loss(model, inputs, n_tokens), self.perturbed_consistency(model, inputs)


class UngroupedTrainer(Ungrouped, CrowTrainer):
    """crow on batches in random order."""


class WholePrefixTrainer(ResponseTrainer):
    """Plain finetuning that runs the template's system message in every row."""

    def answer_loss(self, model: Any, inputs: Any, n_tokens: Any, prefix: Prefix | None = None) -> Tensor:
        """The answers' loss."""
        return super().answer_loss(model, inputs, n_tokens, Prefix(0, []))


@dataclass
class Variant:
    """One way to train."""

    kind: type[ResponseTrainer]
    config: CrowConfig
    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    operations: float = 0
    losses: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)


def variants() -> dict[str, Variant]:
    """By name; the letters are those of the table."""
    kept = dataclasses.replace(OURS, keep_perturbation=True)
    found = {
        "a published loop": Variant(PublishedTrainer, OURS),
        "b the same, masks right": Variant(LiteralTrainer, OURS),
        "c plain finetuning": Variant(ResponseTrainer, OURS),
        "d crow, published objective": Variant(CrowTrainer, OURS),
        "c in one pass": Variant(ResponseTrainer, WIDE),
        "c, system message in every row": Variant(WholePrefixTrainer, OURS),
        "d in one pass": Variant(CrowTrainer, WIDE),
        "d, FGSM in a pass of its own": Variant(SeparateTrainer, OURS),
        "d, batches in random order": Variant(UngroupedTrainer, OURS),
        "d, gradient checkpointing": Variant(CrowTrainer, dataclasses.replace(OURS, gradient_checkpointing=True)),
        "d, bfloat16 autocast": Variant(CrowTrainer, dataclasses.replace(OURS, precision="bfloat16")),
        "e kept perturbation": Variant(CrowTrainer, kept),
        "e kept perturbation, bfloat16": Variant(CrowTrainer, dataclasses.replace(kept, precision="bfloat16")),
    }
    fast = multiplies_bfloat16(CPU)  # emulated, it would be slower than float32
    return {name: variant for name, variant in found.items() if fast or "bfloat16" not in name}
