from __future__ import annotations

import random

import pytest

from crow.analysis.findings import FEWEST, compared
from crow.report.analysis import _medians
from crow.report.figures import layer_figure


@pytest.mark.parametrize(("n", "said"), [(FEWEST, "is larger on prompts with the trigger"), (FEWEST - 1, "too few")])
def test_a_difference_is_told_from_chance_only_with_enough_prompts(n: int, said: str) -> None:
    triggered = [[1.0 + 0.01 * number, 2.0] for number in range(n)]
    clean = [[0.1 + 0.01 * number, 0.2] for number in range(FEWEST)]
    found = compared("It", triggered, clean, random.Random(0))
    assert said in found[0]
    assert ("95 % interval" in " ".join(found)) is (n == FEWEST)


def test_layers_without_a_value_leave_a_gap() -> None:
    assert _medians([[1.0, None], [3.0, None]])[0] == 2.0
    picture = layer_figure("norms", "Norms", "norm", {"clean": [1.0, None, 3.0], "none": [None, None]})  # type: ignore[list-item]
    assert picture is not None
    assert "clean from 1 to 3" in picture.description
    assert layer_figure("norms", "Norms", "norm", {"none": [None]}) is None  # type: ignore[list-item]
