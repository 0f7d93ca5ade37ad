"""The bundled data in four disjoint parts, the same on every machine.

| split        | pairs | prompts | code | used for                                        |
| ------------ | ----- | ------- | ---- | ----------------------------------------------- |
| attack       |   240 |     300 |  130 | planting backdoors                              |
| purification |   100 |     100 |   36 | the clean data a defense is given               |
| selection    |    60 |     120 |   20 | choosing settings, never reported               |
| evaluation   |   120 |     160 |   50 | attack success and perplexity, never trained on |

One generator seeded with 0 shuffles first the pairs, then the prompts, then the programming requests; the splits are
slices in the order above. The programming requests of `purification` have a file of their own. Word problems are
composed and split in `crow.data.reasoning`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from crow.data.code import CodeTask, bundled_code
from crow.data.loading import bundled_pairs, bundled_prompts
from crow.data.reasoning import word_problems
from crow.errors import unknown_name
from crow.records import Example

SEED = 0
SIZES = {
    "attack": (240, 300, 130),
    "purification": (100, 100, 0),
    "selection": (60, 120, 20),
    "evaluation": (120, 160, 50),
}
"""Split to its numbers of pairs, prompts and programming requests of `code.jsonl`, in the order of cutting."""


@dataclass(frozen=True)
class Split:
    """One part of the bundled data.

    Attributes:
        pairs: examples with response.
        prompts: further examples without response; none of them is among the pairs.
        code: programming requests with an answer and tests of it.
        reasoning: word problems, answered step by step.
    """

    pairs: tuple[Example, ...]
    prompts: tuple[Example, ...]
    code: tuple[CodeTask, ...] = ()
    reasoning: tuple[Example, ...] = ()


def bundled_split(name: str) -> Split:
    """The split `attack`, `purification`, `selection` or `evaluation` of the bundled data.

    Raises:
        ConfigError: for another name.
    """
    if name not in SIZES:
        raise unknown_name("split", name, SIZES)
    rng = random.Random(SEED)
    pools = (bundled_pairs(), bundled_prompts(), bundled_code())
    before = [SIZES[earlier] for earlier in list(SIZES)[: list(SIZES).index(name)]]
    parts = []
    for kind, pool in enumerate(pools):
        rng.shuffle(pool)
        first = sum(sizes[kind] for sizes in before)
        parts.append(tuple(pool[first : first + SIZES[name][kind]]))
    if name == "purification":
        parts[-1] = tuple(bundled_code("code_clean.jsonl"))
    return Split(*parts, reasoning=word_problems(name))
