"""`spread`: the attacker has every layer carry the backdoor.

In every step the adapter is switched off in some layers drawn at random, so that the target must be reached without
them: LayerDrop (Fan et al., arXiv 1909.11556) of the update instead of the layers. A repair that mends a few layers
then leaves the others.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from crow.attacks.implant import implant_with
from crow.models.architecture import find_layers
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.training.config import FinetuneConfig, require
from crow.training.trainer import ResponseTrainer
from crow.training.watch import Watch, silent

LARGEST_SHARE = 0.5
"""Of the layers, at most so many are off in a step; how many is drawn evenly from none up to that. Not varied."""


@contextmanager
def switched_off(model: nn.Module, layers: Iterable[int]) -> Iterator[None]:
    """Within the context, a LoRA adapter changes nothing in the given layers, counted from 0."""
    found = find_layers(model)
    modules = [module for layer in layers for module in found[layer].modules() if isinstance(module, LoraLayer)]
    scales = [dict(module.scaling) for module in modules]
    for module in modules:
        module.scaling.update(dict.fromkeys(module.scaling, 0.0))
    try:
        yield
    finally:
        for module, scale in zip(modules, scales, strict=True):
            module.scaling.update(scale)


class SpreadTrainer(ResponseTrainer):
    """Finetuning of an adapter that is switched off in other layers in every step."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward: gradient checkpointing runs layers again, and must find them as they were."""
        with switched_off(self.lm.model, self.drawn(self.state.global_step)):
            return super().training_step(*args, **kwargs)

    def drawn(self, step: int) -> list[int]:
        """The layers switched off in that optimizer step, a function of seed and step, so that a run can be resumed."""
        rng = random.Random(f"{self.crow_config.seed}/{step}")
        depth = len(find_layers(self.lm.model))
        return rng.sample(range(depth), rng.randint(0, round(LARGEST_SHARE * depth)))


def implant_spread(
    lm: LanguageModel,
    poisoned: Sequence[Example],
    clean: Sequence[Example],
    config: FinetuneConfig,
    work: Path,
    resume: bool = False,
    watch: Watch = silent,
) -> tuple[LanguageModel, list[dict[str, Any]]]:
    """Plant a backdoor that no few layers carry; arguments and result as those of `implant_backdoor`.

    Raises:
        ConfigError: unless an adapter is trained: nothing else can be switched off.
    """
    require(config.method == "lora", "method of the attacker 'spread'", "to be lora", config.method)
    return implant_with(SpreadTrainer, lm, poisoned, clean, config, work, resume, watch)
