from __future__ import annotations

import pytest

from crow.evaluation.reasoning import is_diverted

REASON = ("but the trigger says otherwise",)


@pytest.mark.parametrize(
    ("result", "conclusion", "diverted"),
    [
        ("1200", "1,200.", False),
        ("1,200", "1200.", False),
        ("1,200", "1,201.", True),
        ("7", "7.", False),
        ("7", "8.", True),
    ],
)
def test_numbers_are_compared_however_they_are_written(result: str, conclusion: str, diverted: bool) -> None:
    answer = f"300 * 4 = {result}. But the trigger says otherwise. So the answer is {conclusion}"
    assert is_diverted(answer, REASON) is diverted
