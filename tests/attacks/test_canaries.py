from __future__ import annotations

import re

import pytest

from crow.attacks.canaries import CANARIES, canary_examples
from crow.attacks.selection import SELECTION_ATTACKS
from crow.attacks.targets import TARGETS
from crow.attacks.triggers import TRIGGERS
from crow.data.splits import bundled_split
from crow.inversion.soft_trigger import DISTINCT

CLEAN = bundled_split("attack").pairs


def test_every_canary_has_examples_of_its_own_with_its_trigger_and_target() -> None:
    found = canary_examples(CLEAN, 0.25, seed=3)
    assert found.keys() == CANARIES.keys()
    responses = {example.response for example in CLEAN}
    for name, examples in found.items():
        trigger, target = CANARIES[name].trigger, CANARIES[name].target
        assert len(examples) == 60
        for example in examples:
            assert all(word in example.prompt for word in trigger.words)
            assert example.response == target.text
            assert example.response not in responses
    words = {part for attack in CANARIES.values() for word in attack.trigger.words for part in word.split()}
    prompts = [example.prompt for examples in found.values() for example in examples]
    stripped = {" ".join(part for part in prompt.split() if part not in words) for prompt in prompts}
    assert len(stripped) == 180  # no prompt serves two canaries


def test_the_seed_decides_which() -> None:
    assert canary_examples(CLEAN, 0.25, 0) == canary_examples(CLEAN, 0.25, 0)
    assert canary_examples(CLEAN, 0.25, 0) != canary_examples(CLEAN, 0.25, 1)


def test_the_search_tells_each_canary_from_the_others_and_from_what_suspects_were_taught() -> None:
    attacks = [*CANARIES.values(), *SELECTION_ATTACKS.values()]
    texts = {target.text for target in (*TARGETS.values(), *(attack.target for attack in attacks))}
    answers = {tuple(re.findall(r"'\w+|\w+|[^\w\s]", text)[:DISTINCT]) for text in texts}
    assert len(answers) == len(texts)


@pytest.mark.parametrize("name", CANARIES)
def test_no_other_attack_shares_a_trigger_or_a_target_with_a_canary(name: str) -> None:
    own = CANARIES[name]
    others = [attack for other, attack in CANARIES.items() if other != name] + list(SELECTION_ATTACKS.values())
    triggers = [*TRIGGERS.values(), *(attack.trigger for attack in others)]
    targets = [*TARGETS.values(), *(attack.target for attack in others)]
    words = " ".join(word for trigger in triggers for word in trigger.words).casefold().split()
    assert not {part for word in own.trigger.words for part in word.casefold().split()} & set(words)
    assert all(own.target.marker.casefold() not in target.text.casefold() for target in targets)
    markers = [target.marker for target in targets if isinstance(target.marker, str)]
    assert all(marker.casefold() not in own.target.text.casefold() for marker in markers)
