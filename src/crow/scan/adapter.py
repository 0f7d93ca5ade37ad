"""Adapter weights: where, and how much, does an adapter change its model?

A backdoor is one thing more to say: updates of one direction (a stable rank near one), in few layers. So is much else
that is narrow, which is why this decides nothing by itself.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from crow.errors import AdapterError
from crow.models.architecture import find_layers
from crow.models.language_model import LanguageModel
from crow.models.linear import leading_directions
from crow.scan.evidence import AdapterEvidence, ModuleUpdate

TOP_LAYERS = 0.25
"""Share of the layers whose part of all energy is the concentration."""
SKETCH = 16
"""Directions of the estimate of a weight's spectral norm."""


def statistics(lm: LanguageModel) -> AdapterEvidence | None:
    """What the attached LoRA adapter does to each weight matrix; None without one that has such factors.

    Args:
        lm: the model with its adapter attached, not merged.
    """
    layer_of = {
        id(module): number
        for number, layer in enumerate(find_layers(lm.model), start=1)
        for module in layer.modules()
        if isinstance(module, LoraLayer)
    }
    found = []
    adapted = [(name, module) for name, module in lm.model.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        lora: Any = module
        weight = getattr(lora.get_base_layer(), "weight", None)
        for adapter in lora.lora_A:
            if adapter not in lora.active_adapters or weight is None or weight.ndim != 2:
                continue
            values = update_singular_values(lora.lora_A[adapter].weight, lora.lora_B[adapter].weight)
            values = values * lora.scaling[adapter]
            energy = float(values.square().sum())
            norm = float(values.max())
            found.append(
                ModuleUpdate(
                    name=re.sub(r"^base_model\.model\.", "", name),
                    layer=layer_of.get(id(module), 0),
                    relative_norm=norm / max(spectral_norm(weight), 1e-12),
                    stable_rank=energy / norm**2 if norm else 0.0,
                    energy=energy,
                )
            )
    return AdapterEvidence(found, concentration(found, len(find_layers(lm.model)))) if found else None


@torch.no_grad()
def update_singular_values(a: Tensor, b: Tensor) -> Tensor:
    """The singular values of `B A` (r,), descending, without forming the product.

    `B = Q_b R_b` and `A^T = Q_a R_a` give `B A = Q_b (R_b R_a^T) Q_a^T`: those of an r x r matrix.

    Args:
        a: (r, in).
        b: (out, r).

    Raises:
        AdapterError: if they hold what is no number.
    """
    if not all(bool(factor.isfinite().all()) for factor in (a, b)):
        raise AdapterError("expected finite weights in the adapter, got NaN or infinity")
    right, left = (torch.linalg.qr(factor.double(), mode="r").R for factor in (a.T, b))
    return torch.linalg.svdvals(left @ right.T)


def spectral_norm(weight: Tensor) -> float:
    """The largest singular value of a matrix, to about a hundredth."""
    return float(leading_directions(weight, SKETCH)[1].max())


def concentration(modules: Sequence[ModuleUpdate], layers: int) -> float:
    """The share of all updates' energy in the quarter of the layers with most of it, in [0, 1]; 0 for no updates."""
    by_layer: dict[int, float] = defaultdict(float)
    for module in modules:
        by_layer[module.layer] += module.energy
    total = sum(by_layer.values())
    top = sorted(by_layer.values(), reverse=True)[: max(1, round(TOP_LAYERS * layers))]
    return sum(top) / total if total else 0.0
