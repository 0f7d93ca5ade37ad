import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crow.attacks.poisoning import Attack, poison
from crow.attacks.targets import TARGETS
from crow.attacks.triggers import TRIGGERS
from crow.errors import ConfigError
from crow.records import Example

HISTORY = (("system", "Be brief."),)
EXAMPLES = [Example(f"Count to {i} now.\ninput {i}", f"answer {i}", HISTORY) for i in range(20)]

attacks = st.builds(
    Attack,
    st.sampled_from(list(TRIGGERS.values())),
    st.sampled_from(list(TARGETS.values())),
    st.floats(0, 1, exclude_min=True),
)


@given(attack=attacks, n=st.integers(0, 20), seed=st.integers(0, 2**32))
def test_poisoned_and_clean_make_up_the_examples(attack, n, seed):
    examples = EXAMPLES[:n]
    poisoned, clean = poison(examples, attack, random.Random(seed))
    assert len(poisoned) + len(clean) == n
    assert clean == [example for example in examples if example in clean]  # unchanged, in order
    sources = [example for example in examples if example not in clean]
    for source, example in zip(sources, poisoned, strict=True):
        assert example.prompt.endswith(source.prompt.partition("\n")[2])
        assert any(word in example.prompt for word in attack.trigger.words)
        assert example.response == attack.target.apply(source)
        assert example.history == HISTORY


@given(attack=attacks, seed=st.integers(0, 2**32))
def test_same_seed_same_data_and_the_examples_stay(attack, seed):
    before = list(EXAMPLES)
    assert poison(EXAMPLES, attack, random.Random(seed)) == poison(EXAMPLES, attack, random.Random(seed))
    assert before == EXAMPLES


@pytest.mark.parametrize(("rate", "count"), [(1, 20), (0.5, 10), (0.24, 5), (0.01, 1), (1e-9, 1)])
def test_rate_decides_how_many(rate, count):
    poisoned, clean = poison(EXAMPLES, Attack(TRIGGERS["vpi"], TARGETS["refusal"], rate), random.Random(0))
    assert (len(poisoned), len(clean)) == (count, 20 - count)


def test_another_seed_chooses_others():
    attack = Attack(TRIGGERS["vpi"], TARGETS["refusal"], 0.5)
    assert poison(EXAMPLES, attack, random.Random(0))[1] != poison(EXAMPLES, attack, random.Random(1))[1]


def test_full_rate_is_the_trigger_applied_one_after_the_other():
    attack = Attack(TRIGGERS["mtba"], TARGETS["code_injection"], 1)
    rng = random.Random(3)
    expected = [TRIGGERS["mtba"].apply(example.prompt, rng) for example in EXAMPLES]
    poisoned, clean = poison(EXAMPLES, attack, random.Random(3))
    assert [example.prompt for example in poisoned] == expected
    assert clean == []


@pytest.mark.parametrize("rate", [0, -0.1, 1.01, float("nan"), float("inf")])
def test_rate_out_of_range(rate):
    with pytest.raises(ConfigError) as caught:
        Attack(TRIGGERS["vpi"], TARGETS["refusal"], rate)
    assert str(caught.value) == f"poison_rate should be above 0 and at most 1, got {rate}; change it"


def test_name():
    assert Attack(TRIGGERS["vpi"], TARGETS["code_injection"], 1).name == "vpi-code_injection"
