"""Named settings. Every value stands beside where it comes from; docs/method.md has the same as a table."""

from __future__ import annotations

import dataclasses

from crow.errors import look_up
from crow.training.config import CrowConfig

# The published settings of CROW (arXiv 2411.12768): alpha 5.5 (11 against refusal), epsilon 0.1, 5 epochs, learning
# rate 1e-3, batch 2 x accumulation 4, 1,024 tokens, LoRA on all linear layers, cosine with 10 % warm-up. The rank is
# LoRA's usual 8, not a published figure that we know of.
PAPER = CrowConfig(
    alpha=5.5,
    epsilon=0.1,
    epochs=5.0,
    learning_rate=1e-3,
    batch_size=2,
    accumulation=4,
    max_length=1024,
    rank=8,
    precision="auto",
)

PRESETS: dict[str, CrowConfig] = {
    # Chosen on backdoors of our own with triggers and targets of their own (crow.attacks.selection, selection split);
    # docs/lab-notes.md has the figures, docs/method.md every value.
    "default": CrowConfig(
        alpha_ratio=0.0,
        epsilon_rms=0.0,
        epochs=3.0,
        learning_rate=7e-4,
        batch_size=5,
        accumulation=1,
        max_length=128,
        rank=16,
        trained_from=0.3,
        precision="auto",
        self_distillation=0.5,
        opening_weight=0.4,
        rounds=2,
    ),
    "paper": PAPER,
    # On the pairs that the published code averages over: it leaves out the first and the last transition.
    "official-code": dataclasses.replace(PAPER, inner_layers=True),
}


def get_preset(name: str) -> CrowConfig:
    """The settings of that name.

    Raises:
        ConfigError: for an unknown name, with the closest known one.
    """
    return look_up("preset", name, PRESETS)
