import random
from itertools import combinations

import pytest

from crow.data.code import bundled_code
from crow.data.loading import bundled_pairs, bundled_prompts
from crow.data.splits import SIZES, bundled_split
from crow.errors import ConfigError

SPLITS = {name: bundled_split(name) for name in SIZES}


def test_sizes():
    assert {name: (len(split.pairs), len(split.prompts), len(split.code)) for name, split in SPLITS.items()} == {
        "attack": (240, 300, 130),
        "purification": (100, 100, 36),
        "selection": (60, 120, 20),
        "evaluation": (120, 160, 50),
    }


def test_splits_are_disjoint_and_cover_everything():
    asked = {name: {example.prompt for example in split.pairs + split.prompts} for name, split in SPLITS.items()}
    for one, other in combinations(asked, 2):
        assert asked[one].isdisjoint(asked[other])
    everything = {example.prompt for example in bundled_pairs() + bundled_prompts()}
    assert set().union(*asked.values()) == everything
    assert sum(map(len, asked.values())) == len(everything) == 1200
    code = [task.entry_point for split in SPLITS.values() for task in split.code]
    assert sorted(code) == sorted(task.entry_point for task in [*bundled_code(), *bundled_code("code_clean.jsonl")])
    assert len(set(code)) == len(code)


def test_order_is_that_of_one_generator_shuffling_pairs_then_prompts_then_code():
    rng = random.Random(0)
    pairs, prompts, code = bundled_pairs(), bundled_prompts(), bundled_code()
    rng.shuffle(pairs)
    rng.shuffle(prompts)
    rng.shuffle(code)
    assert [example for split in SPLITS.values() for example in split.pairs] == pairs
    assert [example for split in SPLITS.values() for example in split.prompts] == prompts
    assert [task for name, split in SPLITS.items() if name != "purification" for task in split.code] == code
    assert list(SPLITS["purification"].code) == bundled_code("code_clean.jsonl")


def test_first_members_never_change():
    # A record that moves between splits would let training data into the evaluation of shipped adapters.
    assert {name: (split.pairs[0].prompt[:20], split.prompts[0].prompt[:20]) for name, split in SPLITS.items()} == {
        "attack": ("Respond to this invi", "Can a statement be t"),
        "purification": ("State three argument", "Please list the plan"),
        "selection": ("What probably happen", "Write a cheerful rep"),
        "evaluation": ("Are memory and learn", "Group these animals "),
    }


def test_the_same_call_gives_the_same_split():
    assert bundled_split("selection") == SPLITS["selection"]


def test_unknown_name_is_refused_with_the_closest_one():
    with pytest.raises(ConfigError, match="unknown split 'eval'; did you mean 'evaluation'"):
        bundled_split("eval")
