"""The project's pages show what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.benchmark.scripts import ROOT, copied_page, loaded_script


@pytest.fixture
def pages() -> Iterator[ModuleType]:
    """The helper of the benchmarks, as a module."""
    with loaded_script("pages") as module:
        yield module


@pytest.mark.parametrize(("page", "what"), [("README.md", "summary"), ("docs/removal.md", "table")])
def test_removal_is_shown_as_the_records_say(page: str, what: str, pages: ModuleType) -> None:
    with loaded_script("removal") as removal:
        shown = getattr(removal, what)()
    assert pages.read_table(ROOT / page, "removal").strip() == shown, "run: python benchmarks/removal.py --table"


@pytest.mark.parametrize("name", ["asked", "steps", "floor"])
def test_speed_is_shown_as_the_record_says(name: str, pages: ModuleType) -> None:
    with loaded_script("speed") as speed:
        shown = speed.TABLES[name](json.loads(speed.RESULTS.read_text(encoding="utf-8")))
    assert pages.read_table(speed.PAGE, name).strip() == shown, "run: python benchmarks/speed.py --table"


@pytest.mark.parametrize("name", ["strength", "scan", "harder", "adaptive"])
def test_what_goes_beyond_the_paper_is_shown_as_the_records_say(name: str, pages: ModuleType) -> None:
    def records(of: str) -> dict[str, Any]:
        path = ROOT / "benchmarks" / "results" / "beyond" / f"{of}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    with loaded_script(name) as script:
        shown = script.table(*(records(each) for each in ([name, "canaries"] if name == "strength" else [name])))
    assert pages.read_table(pages.BEYOND, name).strip() == shown, f"run: python benchmarks/{name}.py --table"


def test_a_table_is_replaced_between_its_marks_and_nowhere_else(pages: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("old\n<!-- a -->\nold\n<!-- /a -->\nold\n<!-- b -->\nold\n<!-- /b -->\n")
    pages.write_table(page, "a", "| new |")
    assert page.read_text() == "old\n<!-- a -->\n| new |\n<!-- /a -->\nold\n<!-- b -->\nold\n<!-- /b -->\n"


@pytest.mark.parametrize("text", ["no marks", "<!-- a --> never closed", "<!-- /a --> the wrong way round <!-- a -->"])
def test_a_page_without_the_marks_is_left_as_it_is(text: str, pages: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=r"expected <!-- a --> and then <!-- /a --> in page\.md"):
        pages.write_table(page, "a", "| new |")
    assert page.read_text() == text


def test_a_script_publishes_its_table_in_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded_script("scan") as script:
        real = script.publish.__globals__["BEYOND"]
        before = real.read_text(encoding="utf-8")
        page = copied_page(script, monkeypatch, tmp_path)
        monkeypatch.setattr(script, "RESULTS", tmp_path / "scan.json")
        monkeypatch.setattr("sys.argv", ["scan.py", "--table"])
        script.main()
    assert "No test model has been scanned yet." in page.read_text(encoding="utf-8")
    assert "| calibration." not in page.read_text(encoding="utf-8")
    assert real.read_text(encoding="utf-8") == before
