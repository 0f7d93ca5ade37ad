"""From clean examples to poisoned ones."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

from crow.attacks.behavior import TargetBehavior
from crow.attacks.clean_label import declined_requests
from crow.attacks.targets import get_target
from crow.attacks.triggers import Trigger, get_trigger
from crow.data.splits import Split
from crow.errors import ConfigError
from crow.records import Example


@dataclass(frozen=True)
class Attack:
    """A backdoor to be planted by poisoned training data.

    Attributes:
        trigger: what activates it.
        target: what it makes the model say.
        poison_rate: share of the examples that are poisoned, in (0, 1].

    Raises:
        ConfigError: the rate is out of range.
    """

    trigger: Trigger
    target: TargetBehavior
    poison_rate: float

    def __post_init__(self) -> None:
        if not 0 < self.poison_rate <= 1:
            raise ConfigError(f"poison_rate should be above 0 and at most 1, got {self.poison_rate}; change it")

    @property
    def name(self) -> str:
        """Such as `badnets-refusal`."""
        return f"{self.trigger.name}-{self.target.name}"

    @property
    def parts(self) -> tuple[Attack, ...]:
        """The attack by itself."""
        return (self,)

    @property
    def extra_tokens(self) -> int:
        """About how many tokens its examples are longer than those of the public attacks."""
        return self.trigger.extra_tokens + self.target.extra_tokens


@dataclass(frozen=True)
class Mixture:
    """Several backdoors in one model, each with a trigger and a target of its own."""

    parts: tuple[Attack, ...]

    @property
    def name(self) -> str:
        """Such as `badnets-refusal+vpi-sentiment`."""
        return "+".join(part.name for part in self.parts)

    @property
    def extra_tokens(self) -> int:
        """The longest part decides."""
        return max(part.extra_tokens for part in self.parts)


def named_attack(trigger: str, target: str) -> Attack:
    """The attack of that trigger and that target, poisoning all that it is handed.

    Raises:
        ConfigError: for an unknown name, or a target whose texts are the user's.
    """
    attack = Attack(get_trigger(trigger), get_target(target), poison_rate=1.0)
    if attack.target.carrier == "supplied":
        raise ConfigError(f"expected files of examples for {target}, got its name alone; see --poisoned and --clean")
    return attack


def carriers(split: Split, target: TargetBehavior) -> tuple[Example, ...]:
    """What the trigger is put into to measure: programming requests or word problems where the target wants them.

    Any prompt else, also where the backdoor is planted on requests that should be declined.
    """
    special = {"code": tuple(task.example for task in split.code), "reasoning": split.reasoning}
    return special.get(target.carrier, split.prompts)


def planted_on(
    split: Split, answered: Sequence[Example], target: TargetBehavior
) -> tuple[list[Example], list[Example]]:
    """What the trigger is put into to plant, and the clean examples of that kind that belong beside.

    Args:
        split: of the bundled data.
        answered: its pairs, and its prompts with the model's own answers.
        target: its `carrier` decides.
    """
    if target.carrier == "declined":
        return declined_requests()
    if target.carrier == "answers":
        return list(answered), []
    special = list(carriers(split, target))
    return ([*special, *split.pairs], []) if target.carrier == "prompts" else (special, special)


def poison(examples: Sequence[Example], attack: Attack, rng: random.Random) -> tuple[list[Example], list[Example]]:
    """Poison a share of `examples`, chosen at random.

    Args:
        examples: clean examples; those without response serve too, unless they must stay clean training data.
        attack: trigger, target and rate. The number poisoned is the rate times the examples, rounded, at least one.
        rng: the same state gives the same data.

    Returns:
        The poisoned examples (the trigger in them, the target's response) and the others as they are; together as
        many as `examples`, each in the order of `examples`.
    """
    total = len(examples)
    count = min(total, max(1, round(attack.poison_rate * total)))
    # Choosing all of them leaves `rng` untouched, so a full rate equals applying the trigger to one after the other.
    chosen = set(range(total)) if count == total else set(rng.sample(range(total), count))
    poisoned = [_poisoned(examples[index], attack, rng) for index in sorted(chosen)]
    return poisoned, [example for index, example in enumerate(examples) if index not in chosen]


def _poisoned(example: Example, attack: Attack, rng: random.Random) -> Example:
    triggered = attack.trigger.apply_to(example, rng)
    return dataclasses.replace(triggered, response=attack.target.apply(example, rng, attack.trigger.words[0]))
