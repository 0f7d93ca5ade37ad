from __future__ import annotations

import pytest

from tests.benchmark.scripts import loaded_script


def test_a_fit_finds_the_terms_and_says_how_far_it_is_off() -> None:
    with loaded_script("growth") as growth:
        terms = (lambda x: x, lambda x: x * x)
        xs = [64, 128, 256, 512]
        exact = growth.fit(xs, [3 * x + 0.01 * x * x for x in xs], terms)
        assert exact["coefficients"] == pytest.approx([3, 0.01])
        assert exact["worst"] == pytest.approx(0, abs=1e-9)
        cubic = growth.fit(xs, [x**3 for x in xs], terms)
        assert cubic["worst"] > 0.2


def test_examples_have_their_length_and_half_of_it_is_answer() -> None:
    with loaded_script("growth") as growth:
        items = growth.examples(3, 64, 100)
        assert [(len(item), len(item.response_ids)) for item in items] == [(64, 32)] * 3
