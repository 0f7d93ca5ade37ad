"""Settings of finetuning and of CROW. Paper symbols kept; every preset beside its source."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from crow.errors import ConfigError, unknown_name
from crow.training.precision import PRECISIONS

C = TypeVar("C", bound="FinetuneConfig")


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of plain finetuning on responses.

    Attributes:
        method: `lora` (an adapter on all linear layers) or `full` (all weights).
        epochs: passes over the data, > 0; fractions are allowed.
        learning_rate: peak learning rate, > 0; cosine decay after the warm-up.
        batch_size: examples in one forward pass; on a single GPU all of a step, where they fit (`training.fitting`).
        accumulation: forward passes in one optimizer step.
        max_length: examples are cut to this many tokens.
        rank: rank of the adapter; its scale `lora_alpha / rank` is 2.
        dropout: dropout of the adapter, in [0, 1).
        trained_from: share of the model's depth below which layers stay as they are, in [0, 1).
        warmup_ratio: share of the steps with rising learning rate.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        router_loss: add a mixture's own load-balancing loss.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        torch_compile: compile the decoder layers (`training.compiled`): half a minute or more, so for long trainings.
        precision: of the matrix products: `float32`, `bfloat16` (autocast) or `auto` (bfloat16 where it is fast).
        seed: of data order and initialization.
    """

    method: str = "lora"
    epochs: float = 1.0
    learning_rate: float = 5e-4
    batch_size: int = 4
    accumulation: int = 2
    max_length: int = 256
    rank: int = 16
    dropout: float = 0.0
    trained_from: float = 0.0
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    router_loss: bool = False
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    precision: str = "float32"
    seed: int = 0
    METHODS: ClassVar[tuple[str, ...]] = ("lora", "full")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_kind(field.name, str(field.type), getattr(self, field.name))
        if self.method not in self.METHODS:
            raise unknown_name("method", self.method, self.METHODS)
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        require(0 < self.epochs < math.inf, "epochs", "> 0", self.epochs)
        require(0 < self.learning_rate <= 1, "learning_rate", "in (0, 1]", self.learning_rate)
        for name in ("batch_size", "accumulation", "rank"):
            require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        require(self.max_length >= 16, "max_length", ">= 16", self.max_length)
        for name in ("dropout", "trained_from", "warmup_ratio"):
            require(0 <= getattr(self, name) < 1, name, "in [0, 1)", getattr(self, name))
        require(0 <= self.weight_decay < math.inf, "weight_decay", ">= 0", self.weight_decay)
        require(self.max_grad_norm > 0, "max_grad_norm", "> 0", self.max_grad_norm)

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any]) -> C:
        """A configuration from names and values, for example read from YAML.

        Raises:
            ConfigError: for an unknown name, a value of the wrong type or out of range.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise unknown_name("setting", name, known)
        try:
            return cls(**values)
        except TypeError:
            raise ConfigError(f"expected numbers and names as settings, got {values}") from None


KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}


def check_kind(name: str, kind: str, value: Any) -> None:
    """Raise ConfigError unless a setting's value is of the kind that its annotation says: YAML may hold `"false"`.

    Args:
        name: of the setting.
        kind: a key of `KINDS`, or `tuple[KEY, ...]`; either may be `| None`.
        value: of the setting; a list serves as a tuple.
    """
    inner = kind.removesuffix(" | None")
    if value is None and inner != kind:
        return
    several = inner.startswith("tuple")
    wanted = KINDS[inner.removeprefix("tuple[").removesuffix(", ...]")]
    parts = [value] if not several else list(value) if isinstance(value, list | tuple) else []
    if not parts or not all(
        isinstance(part, wanted) and isinstance(part, bool) == (wanted == (bool,)) for part in parts
    ):
        raise ConfigError(f"expected {name} to be {inner}, got {value!r}")


UNITS = (("alpha", "alpha_ratio"), ("epsilon", "epsilon_rms"))
"""Absolute and portable unit of the same quantity."""


@dataclass(frozen=True)
class CrowConfig(FinetuneConfig):
    """Settings of CROW: `L = L_LM(clean) + alpha * L_cons(perturbed)`, and of the trigger search on top of it.

    Attributes:
        method: also `qlora`: an adapter on weights that are kept in 4 bits meanwhile.
        alpha: weight of the consistency term (the paper's), >= 0.
        alpha_ratio: the portable unit instead: `alpha * L_cons / L_LM` at the start of training, >= 0.
        epsilon: FGSM step in the units of the embeddings (the paper's), >= 0.
        epsilon_rms: the portable unit instead: multiples of the embedding table's RMS, >= 0.
        keep_perturbation: take both terms at the FGSM step that the example's last visit gave, by the gradient of the
            whole objective: one forward and one backward pass a step, as plain finetuning has.
        layers: the layers l in 1..N whose pair (l-1, l) counts; all if None.
        inner_layers: leave out the first and the last pair when `layers` is None.
        samples: clean examples used, chosen by seed.
        self_distillation: how much of the language-modelling term asks for the suspect's own predictions on the clean
            answers instead of the answers' tokens, in [0, 1].
        opening_weight: weight, in that, of the mean over the answers' first `adversary_tokens` tokens beside the mean
            over all of them, >= 0.
        interpolation: share of the way from the weights before training to those after it that is gone, in (0, 1].
        rounds: at most this many times search and repair; 0 leaves the search out (the published method).
        adversary_weight: weight of the loss under the latent adversary, >= 0.
        found_weight: in that loss, weight of the found answer's likelihood over that of output consistency, >= 0.
        adversary_every: optimizer steps from one of its turns to the next; those between mend what it costs.
        adversary_until: share of the optimizer steps after which it has no further turn, in (0, 1]; the rest mend.
        adversary_radius: largest perturbation, in multiples of the median norm of the hidden states there.
        adversary_rate: step of the adversary, as a share of the radius.
        adversary_steps: steps of the adversary before each of its turns.
        adversary_aims: so many of a found answer's first tokens a perturbation is after, drawn anew in every turn. Once
            the second is unlikely, one that is always after both need not raise the first, and the trigger still does.
        adversary_prompts: prompts the adversary is renewed on.
        adversary_mix: perturbations at work in each turn, each on its share of the examples.
        adversary_batch: examples answered under them in each turn.
        adversary_tokens: response tokens that count there.
        adversary_depths: the layers it attacks, as shares of the model's depth.
    """

    alpha: float | None = None
    alpha_ratio: float | None = None
    epsilon: float | None = None
    epsilon_rms: float | None = None
    keep_perturbation: bool = False
    layers: tuple[int, ...] | None = None
    inner_layers: bool = False
    samples: int = 100
    self_distillation: float = 0.0
    opening_weight: float = 0.0
    interpolation: float = 1.0
    rounds: int = 0
    adversary_weight: float = 0.6
    found_weight: float = 2.0
    adversary_every: int = 4
    adversary_until: float = 1.0
    adversary_radius: float = 1.2
    adversary_rate: float = 0.35
    adversary_steps: int = 3
    adversary_aims: tuple[int, ...] = (1, 3)
    adversary_prompts: int = 5
    adversary_mix: int = 2
    adversary_batch: int = 10
    adversary_tokens: int = 8
    adversary_depths: tuple[float, ...] = (0.3, 0.5, 0.65, 0.78)
    METHODS: ClassVar[tuple[str, ...]] = ("lora", "full", "qlora")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", tuple(self.layers) if self.layers is not None else None)
        for name in ("adversary_aims", "adversary_depths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for one, other in UNITS:
            given = [name for name in (one, other) if getattr(self, name) is not None]
            require(len(given) == 1, f"exactly one of {one} and {other}", "to be set", " and ".join(given) or "none")
            require(0 <= getattr(self, given[0]) < math.inf, given[0], ">= 0", getattr(self, given[0]))
        for name in (
            "samples",
            "adversary_every",
            "adversary_steps",
            "adversary_prompts",
            "adversary_mix",
            "adversary_batch",
            "adversary_tokens",
        ):
            require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        for name in ("rounds", "opening_weight", "adversary_weight", "found_weight"):
            require(0 <= getattr(self, name) < math.inf, name, ">= 0", getattr(self, name))
        share = self.self_distillation
        require(0 <= share <= 1, "self_distillation", "in [0, 1]", share)
        for name in ("interpolation", "adversary_until"):
            require(0 < getattr(self, name) <= 1, name, "in (0, 1]", getattr(self, name))
        for name in ("adversary_radius", "adversary_rate"):
            require(0 < getattr(self, name) < math.inf, name, "> 0", getattr(self, name))
        depths, aims = self.adversary_depths, self.adversary_aims
        require(bool(aims) and all(aim >= 1 for aim in aims), "adversary_aims", ">= 1", aims)
        require(bool(depths) and all(0 < d <= 1 for d in depths), "adversary_depths", "in (0, 1]", depths)

    def changed(self, **changes: Any) -> CrowConfig:
        """These settings with changes; of two units of one quantity, the new one replaces the old.

        Raises:
            ConfigError: for an unknown name, a value out of range, or both units at once.
        """
        known = {f.name for f in dataclasses.fields(self)}
        for name in changes:
            if name not in known:
                raise unknown_name("setting", name, known)
        for one, other in UNITS:
            require(not (one in changes and other in changes), f"at most one of {one} and {other}", "to be set", "both")
            if one in changes:
                changes[other] = None
            elif other in changes:
                changes[one] = None
        try:
            return dataclasses.replace(self, **changes)
        except TypeError:
            raise ConfigError(f"expected numbers and names as settings, got {changes}") from None


def require(ok: bool, name: str, expected: str, value: object) -> None:
    """Raise ConfigError naming the setting unless `ok`."""
    if not ok:
        raise ConfigError(f"expected {name} {expected}, got {value}")
