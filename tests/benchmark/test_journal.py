from __future__ import annotations

import json
from pathlib import Path

import pytest

from crow.benchmark.journal import Journal
from crow.locks import lock_of


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "results" / "table.json", ["first", "second", "third"], tmp_path)


def test_a_killed_run_goes_on_where_it_was(journal: Journal) -> None:
    def killed(name: str) -> dict[str, str]:
        if name == "second":
            raise KeyboardInterrupt
        return {"name": name}

    with pytest.raises(KeyboardInterrupt):
        journal.fill(killed)
    ran: list[str] = []
    journal.fill(lambda name: ran.append(name) or {"name": name, "again": True})
    assert ran == ["second", "third"]
    assert journal.records()["first"] == {"name": "first"}
    assert journal.left() == []


def test_a_cell_that_fails_stops_no_other_and_is_told_in_the_end(
    journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str) -> str:
        if name == "first":
            raise ValueError("no such model")
        return name

    with pytest.raises(ExceptionGroup) as told:
        journal.fill(run)
    assert [str(error) for error in told.value.exceptions] == ["no such model"]
    assert "in the cell first" in capsys.readouterr().err
    assert journal.left() == ["first"]


def test_records_stand_in_the_order_of_the_cells_whoever_came_first(journal: Journal) -> None:
    journal.fill(lambda name: name, only="third")
    journal.fill(lambda name: name)
    assert list(json.loads(journal.path.read_text())) == ["first", "second", "third"]


def test_what_another_process_adds_meanwhile_stays_and_is_not_run_again(journal: Journal) -> None:
    other = Journal(journal.path, journal.cells, journal.root)

    def run(name: str) -> str:
        assert name == "first" or pytest.fail("a measured cell ran again")
        other.fill(lambda cell: f"other's {cell}", only="second")
        other.fill(lambda cell: f"other's {cell}", only="third")
        return "ours"

    journal.fill(run)
    assert journal.records() == {"first": "ours", "second": "other's second", "third": "other's third"}


def test_a_cell_that_another_process_is_at_is_left_to_it(journal: Journal) -> None:
    with lock_of(journal.path / "second"):
        journal.fill(lambda name: name)
    assert journal.left() == ["second"]
    journal.fill(lambda name: name)
    assert journal.left() == []


def test_a_record_names_no_folder_of_the_machine(journal: Journal) -> None:
    journal.add("first", {"path": journal.root / "data" / "clean.jsonl"})
    assert journal.records() == {"first": {"path": "data/clean.jsonl"}}


def test_a_cell_that_is_no_more_keeps_its_record(journal: Journal) -> None:
    journal.fill(lambda name: name)
    fewer = Journal(journal.path, ["third"], journal.root)
    fewer.add("third", "new")
    assert fewer.records() == {"third": "new", "first": "first", "second": "second"}
