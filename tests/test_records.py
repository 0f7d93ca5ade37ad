from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crow.records import (
    Z_95,
    Example,
    Perplexity,
    Rate,
    Score,
    SearchRecord,
    dump_json,
    to_json,
    wilson_interval,
)


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    """(successes, n) with 0 <= successes <= n."""
    n = draw(st.integers(1, 2000))
    return draw(st.integers(0, n)), n


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # published values: Newcombe 1998 (table I, method 3) and Brown, Cai, DasGupta 2001
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (0, 200, 0.0000, 0.0188),
        (2, 200, 0.0027, 0.0357),
    ],
)
def test_wilson_interval_of_known_cases(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(counts())
def test_the_bounds_solve_the_equation_they_are_defined_by(case):
    """Both are the proportions p0 at which the score test is just significant: (p - p0)² = z² p0 (1 - p0) / n."""
    successes, n = case
    p = successes / n
    for bound in wilson_interval(successes, n):
        assert (p - bound) ** 2 == pytest.approx(Z_95**2 * bound * (1 - bound) / n, abs=1e-12)


@given(counts())
def test_the_interval_lies_in_0_to_1_around_the_rate(case):
    successes, n = case
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert low < high


@given(counts())
def test_swapping_yes_and_no_mirrors_the_interval(case):
    successes, n = case
    low, high = wilson_interval(successes, n)
    assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(counts(), st.integers(2, 10))
def test_more_evidence_for_the_same_rate_narrows_the_interval(case, factor):
    successes, n = case
    low, high = wilson_interval(successes, n)
    narrow_low, narrow_high = wilson_interval(factor * successes, factor * n)
    assert low <= narrow_low < narrow_high <= high


@given(counts())
def test_one_more_success_raises_both_bounds(case):
    successes, n = case
    if successes < n:
        lower, higher = wilson_interval(successes, n), wilson_interval(successes + 1, n)
        assert lower[0] < higher[0]
        assert lower[1] < higher[1]


@pytest.mark.parametrize("n", [1, 3, 100, 200])
def test_the_extremes_touch_0_and_1_exactly(n):
    z2 = Z_95**2
    assert wilson_interval(0, n) == (0.0, pytest.approx(z2 / (n + z2)))
    assert wilson_interval(n, n) == (pytest.approx(n / (n + z2)), 1.0)


def test_a_wider_quantile_gives_a_wider_interval():
    assert wilson_interval(5, 10, z=0.0) == (0.5, 0.5)
    assert wilson_interval(5, 10, z=3.0)[1] > wilson_interval(5, 10)[1]


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5), (0, -1)])
def test_impossible_counts_are_refused(successes, n):
    for function in (wilson_interval, Rate.of):
        with pytest.raises(ValueError, match=f"got {successes} of {n}"):
            function(successes, n)


def test_a_rate_keeps_its_denominator_and_what_was_unscored():
    rate = Rate.of(3, 10, n_unscored=2)
    assert (rate.value, rate.n, rate.n_unscored) == (0.3, 10, 2)
    assert (rate.low, rate.high) == wilson_interval(3, 10)
    assert set(to_json(rate)) == {"value", "n", "n_unscored", "low", "high"}


def test_messages_are_the_history_and_the_prompt():
    example = Example("And now?", "Later.", (("system", "Be brief."), ("user", "Now?"), ("assistant", "No.")))
    assert example.messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Now?"},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "And now?"},
    ]


def test_records_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Example("a").prompt = "b"  # pyright: ignore[reportAttributeAccessIssue]


def test_to_json_turns_everything_into_what_json_knows():
    record = {
        "score": Score("p", "o", None),
        "path": Path("a") / "b",
        "tuple": (1, (2.5, None)),
        3: [Perplexity(math.inf, 4), math.nan, -math.inf, True],
        "search": SearchRecord(2, 1, ["x"], [0.5]),
    }
    empty = ("artefacts", "lines", "certainties", "stock", "closings", "edits", "memorized", "behind", "tokens")
    nothing = {name: [] for name in empty}
    assert to_json(record) == {
        "score": {"prompt": "p", "output": "o", "hit": None, "empty": False, "degenerate": False},
        "path": "a/b",
        "tuple": [1, [2.5, None]],
        "3": [{"value": None, "n_tokens": 4}, None, None, True],
        "search": {"starts": 2, "collapsed": 1, "texts": ["x"], "identities": [0.5], **nothing},
    }


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
trees = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


@given(trees)
def test_dump_json_is_valid_json_that_reads_back_the_same(value):
    text = dump_json(value)
    assert text.endswith("\n")
    read = json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    assert read == to_json(value)


def test_dump_json_keeps_letters_readable():
    assert dump_json({"a": "é"}) == '{\n  "a": "é"\n}\n'
