from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crow.evaluation.values import decode, encode

numbers = st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
plain = st.recursive(
    st.none() | st.booleans() | numbers | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner) | st.sets(numbers),
    max_leaves=20,
)


@given(plain)
def test_values_come_back_as_they_were(value):
    back = decode(json.loads(json.dumps(encode(value))))
    assert back == value
    assert type(back) is type(value)


def test_what_is_no_number_comes_back_as_none():
    assert math.isnan(decode(encode(float("nan"))))


class Always(int):
    """Equal to everything."""

    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


def endless():
    loop = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize("value", [Always(1), object(), len, endless(), [Always(1)], {"a": {1: Always(2)}}, iter([])])
def test_only_plain_values_pass(value):
    with pytest.raises(TypeError):
        encode(value)


BROKEN = [1, 1.5, [], {}, {"int": "zz"}, {"int": None}, {"eval": "1"}, {"a": 1, "b": 2}, {"set": [{"list": []}]}]


@pytest.mark.parametrize("value", [*BROKEN, {"dict": [1]}, {"float": "0x1p99999"}])
def test_nothing_else_is_read(value):
    with pytest.raises(ValueError, match=r"not an encoded value|fromhex|literal"):
        decode(value)
