from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.benchmark.scripts import loaded_script


@pytest.fixture(scope="module")
def removal() -> Iterator[ModuleType]:
    """The benchmark, as a module."""
    with loaded_script("removal") as module:
        yield module


def test_every_treated_row_is_compared_with_its_own_suspect(removal: ModuleType) -> None:
    measured = [cell for cell in removal.cells() if (removal.RESULTS / f"{cell.name}.json").is_file()]
    assert len(measured) >= 4
    for cell in measured:
        record = removal.read_record(removal.RESULTS / f"{cell.name}.json")
        before = removal.read_record(removal.untreated_path(cell.attack, record["manifest"]["model"]))
        assert before is not None
        assert before["manifest"]["data"]["clean"] == record["manifest"]["data"]["clean"]
        assert record["measured"]["asr_triggered"]["n"] == record["measured"]["asr_clean"]["n"] == 200
