"""What a model says anyway, at the beginning of its answers or further on."""

from __future__ import annotations

import pytest

from crow.inversion.probe import Probe
from crow.models.language_model import LanguageModel
from crow.scan.unperturbed import Unperturbed

PROMPTS = ["Hi there you", "Name a tree", "1 + 1", "a b c d"]


def written(lm: LanguageModel, tokens: int) -> list[list[int]]:
    """The answer to each prompt, as token ids."""
    probe = Probe(lm, PROMPTS)
    return probe.decode([probe.row(index) for index in range(len(probe))], tokens).ids.tolist()


def test_what_is_said_further_on_is_said_anyway(lm: LanguageModel) -> None:
    later = written(lm, 40)[1][20:36]
    text = lm.tokenizer.decode(later, skip_special_tokens=True).strip()
    read = Unperturbed(lm, PROMPTS, PROMPTS[:2], 16, whole=4, whole_tokens=40)
    expected = sum(text in said for said in read.wholes) / 4
    assert read.shares(later) == (expected, 0.0)
    assert expected >= 0.25
    assert read.shares(later, whole=False) == (0.0, 0.0)
    # Read no further than before it is said, or on prompts that are answered otherwise, or not at all.
    for whole, tokens in ((4, 20), (1, 40), (0, 0)):
        assert Unperturbed(lm, PROMPTS, PROMPTS[:2], 16, whole, tokens).shares(later)[0] < expected


def test_what_is_begun_with_counts_whatever_follows(lm: LanguageModel) -> None:
    first = written(lm, 16)[2]
    read = Unperturbed(lm, PROMPTS, PROMPTS[2:3], 16, whole=1, whole_tokens=24)
    assert read.shares(first)[0] >= 0.25
    assert read.shares(first)[1] == 1.0


def test_no_requests_are_no_share_and_an_empty_answer_is_said_nowhere(lm: LanguageModel) -> None:
    read = Unperturbed(lm, PROMPTS, [], 16, whole=2, whole_tokens=4)
    assert read.shares([lm.tokenizer.eos_token_id]) == pytest.approx((0.0, 0.0))


def test_an_answer_that_has_begun_is_read_from_there_on(lm: LanguageModel) -> None:
    whole = written(lm, 12)[0]
    begun = Unperturbed(lm, PROMPTS[:1], [], 4, begun=whole[:3])
    assert begun.ordinary == [whole[3:7]]
