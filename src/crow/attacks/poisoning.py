"""From clean examples to poisoned ones."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

from crow.attacks.targets import TargetBehavior
from crow.attacks.triggers import Trigger
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


def carriers(split: Split, target: TargetBehavior) -> tuple[Example, ...]:
    """What the trigger is put into: programming requests where the target is smuggled into code, else any prompt."""
    return tuple(task.example for task in split.code) if target.keeps_answer else split.prompts


def poison(examples: Sequence[Example], attack: Attack, rng: random.Random) -> tuple[list[Example], list[Example]]:
    """Poison a share of `examples`, chosen at random.

    Args:
        examples: clean examples; those without response serve too, unless they must stay clean training data.
        attack: trigger, target and rate. The number poisoned is the rate times the examples, rounded, at least one.
        rng: the same state gives the same data.

    Returns:
        The poisoned examples (trigger in the prompt, the target's response) and the others as they are; together as
        many as `examples`, each in the order of `examples`.
    """
    total = len(examples)
    count = min(total, max(1, round(attack.poison_rate * total)))
    # Choosing all of them leaves `rng` untouched, so a full rate equals applying the trigger to one after the other.
    chosen = set(range(total)) if count == total else set(rng.sample(range(total), count))
    poisoned = [_poisoned(examples[index], attack, rng) for index in sorted(chosen)]
    return poisoned, [example for index, example in enumerate(examples) if index not in chosen]


def _poisoned(example: Example, attack: Attack, rng: random.Random) -> Example:
    prompt = attack.trigger.apply(example.prompt, rng)
    return dataclasses.replace(example, prompt=prompt, response=attack.target.apply(example))
