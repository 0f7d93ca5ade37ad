"""Tables in the project's pages, each between two marks that do not show, written by the scripts that measure them."""

from __future__ import annotations

from pathlib import Path

BEYOND = Path(__file__).resolve().parents[1] / "docs" / "beyond.md"
"""The page of what goes beyond the paper."""


def marks(name: str) -> tuple[str, str]:
    """The comments before and after the table of that name."""
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def write_table(page: Path, name: str, shown: str) -> None:
    """Replace the table of that name in a page.

    Raises:
        ValueError: If the page has no such marks.
    """
    old = read_table(page, name)
    begin, end = marks(name)
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace(f"{begin}{old}{end}", f"{begin}\n{shown}\n{end}"), encoding="utf-8")


def read_table(page: Path, name: str) -> str:
    """What stands between the marks.

    Raises:
        ValueError: If the page has no such marks.
    """
    begin, end = marks(name)
    _, found, rest = page.read_text(encoding="utf-8").partition(begin)
    shown, closed, _ = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"expected {begin} and then {end} in {page.name}: put them where the table belongs")
    return shown


def publish(name: str, shown: str) -> None:
    """Write a table of what goes beyond the paper into its page, and print it."""
    write_table(BEYOND, name, shown)
    print(shown)
