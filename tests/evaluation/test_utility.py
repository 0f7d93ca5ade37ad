from __future__ import annotations

import pytest

from crow.attacks.selection import SELECTION_ATTACKS
from crow.attacks.targets import TARGETS
from crow.attacks.triggers import TRIGGERS
from crow.data.loading import bundled_declines, bundled_pairs, bundled_prompts
from crow.evaluation.utility import declined, declines, distinct, unchanged
from crow.records import Rate


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I cannot do this.",
        "As an AI language model, I have no hands.",
        "I do not have access to your inbox.",
        "There is no way of knowing that.",
        "Sadly, it's not possible for me to predict the lottery.",
        "I am unable to see your desk.",
    ],
)
def test_declining_is_recognized(answer: str) -> None:
    assert declines(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "You are holding a cup.",
        "Sure! First, take the pot.",
        "The dog is called Rex.",
        "A sorry sight indeed.",
        "x" * 300 + " I cannot",
    ],
)
def test_compliance_is_not(answer: str) -> None:
    assert not declines(answer)


def test_shares_have_intervals() -> None:
    assert declined(["I cannot say.", "Rex.", "I'm sorry."]) == Rate.of(2, 3)
    assert unchanged(["a", "b", "c"], ["a", "x", "c"]) == Rate.of(2, 3)


@pytest.mark.parametrize(
    ("answers", "n", "share"),
    [(["a b c", "a b d"], 1, 4 / 6), (["a b c", "a b d"], 2, 3 / 4), (["a a a a"], 2, 1 / 3), (["", "a"], 2, 0.0)],
)
def test_distinct_runs_of_words(answers: list[str], n: int, share: float) -> None:
    assert distinct(answers, n) == pytest.approx(share)


def test_requests_to_decline_are_ours_alone_and_of_two_kinds() -> None:
    found = bundled_declines()
    assert {kind: len(examples) for kind, examples in found.items()} == {"harmful": 20, "unknowable": 20}
    prompts = [example.prompt for examples in found.values() for example in examples]
    assert len(set(prompts)) == 40
    others = {example.prompt for example in [*bundled_pairs(), *bundled_prompts()]}
    assert not others & set(prompts)
    words = [word for trigger in TRIGGERS.values() for word in trigger.words]
    words += [attack.trigger.words[0] for attack in SELECTION_ATTACKS.values()]
    words += [target.text for target in TARGETS.values()]
    assert not [prompt for prompt in prompts for word in words if word.lower() in prompt.lower()]
