"""The bundled data in four disjoint parts, the same on every machine.

| split        | pairs | prompts | used for                                            |
| ------------ | ----- | ------- | --------------------------------------------------- |
| attack       |   240 |     300 | planting backdoors                                  |
| purification |   100 |     100 | the clean data a defense is given                   |
| selection    |    60 |     120 | choosing settings, never reported                   |
| evaluation   |   120 |     160 | attack success and perplexity, never trained on     |

One generator seeded with 0 shuffles first the pairs and then the prompts; the splits are slices in the order above.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from crow.data.loading import bundled_pairs, bundled_prompts
from crow.errors import unknown_name
from crow.records import Example

SEED = 0
SIZES = {"attack": (240, 300), "purification": (100, 100), "selection": (60, 120), "evaluation": (120, 160)}
"""Name of the split to its numbers of pairs and of prompts, in the order in which they are cut off."""


@dataclass(frozen=True)
class Split:
    """One part of the bundled data.

    Attributes:
        pairs: examples with response.
        prompts: further examples without response; none of them is among the pairs.
    """

    pairs: tuple[Example, ...]
    prompts: tuple[Example, ...]


def bundled_split(name: str) -> Split:
    """The split `attack`, `purification`, `selection` or `evaluation` of the bundled data.

    Raises:
        ConfigError: for another name.
    """
    if name not in SIZES:
        raise unknown_name("split", name, SIZES)
    rng = random.Random(SEED)
    pairs, prompts = bundled_pairs(), bundled_prompts()
    rng.shuffle(pairs)
    rng.shuffle(prompts)
    names = list(SIZES)
    before = [SIZES[earlier] for earlier in names[: names.index(name)]]
    first_pair, first_prompt = sum(size[0] for size in before), sum(size[1] for size in before)
    n_pairs, n_prompts = SIZES[name]
    return Split(
        tuple(pairs[first_pair : first_pair + n_pairs]), tuple(prompts[first_prompt : first_prompt + n_prompts])
    )
