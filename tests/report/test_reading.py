from __future__ import annotations

import pytest

from crow.records import Rate, to_json, wilson_interval
from crow.report.reading import as_number, read_evaluation, read_perplexity, read_rate, read_search


@pytest.mark.parametrize("value", [None, "0.5", True, float("nan"), float("inf"), 10**400, [1.0]])
def test_what_is_no_number_reads_as_none(value):
    assert as_number(value) is None


def test_a_rate_survives_its_json():
    assert read_rate(to_json(Rate.of(3, 200, n_unscored=1))) == Rate.of(3, 200, n_unscored=1)


def test_a_missing_interval_is_computed():
    rate = read_rate({"value": 0.25, "n": 40})
    assert rate is not None
    assert (rate.low, rate.high) == wilson_interval(10, 40)


@pytest.mark.parametrize(
    "entry", [{"value": 0.5}, {"value": 0.5, "n": 0}, {"value": 1.5, "n": 10}, {"n": 10}, None, 0.5]
)
def test_a_rate_without_n_or_out_of_range_is_no_measurement(entry):
    assert read_rate(entry) is None


def test_a_perplexity_must_be_positive():
    assert read_perplexity({"value": 0.0, "n_tokens": 10}) is None
    assert read_perplexity({"value": 5.0}) is not None


@pytest.mark.parametrize("entry", [{"starts": 0, "collapsed": 0}, {"starts": 3}, {"starts": 3, "collapsed": 4}, None])
def test_a_search_without_starts_or_with_impossible_counts_is_none(entry):
    assert read_search(entry) is None


def test_an_empty_evaluation_has_nothing():
    assert read_evaluation(None).n_prompts == 0
