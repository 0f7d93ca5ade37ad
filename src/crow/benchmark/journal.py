"""A table of an experiment as one JSON file, filled cell by cell: kill it anywhere and run it again."""

from __future__ import annotations

import json
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from crow.benchmark.portable import portable
from crow.locks import lock_of
from crow.output import write_json


class Journal:
    """Cell name to record, in the order of the cells.

    Several processes may fill one, each taking cells that no other is at, and adding what it has measured to what is
    there by then.

    Args:
        path: the JSON file.
        cells: the names of all cells, whether measured or not.
        root: folder that paths in records are written relative to.
    """

    def __init__(self, path: Path, cells: list[str], root: Path) -> None:
        self.path = path
        self.cells = cells
        self.root = root

    def records(self) -> dict[str, Any]:
        """What has been measured, in the order of the cells; records of cells that are no more come last."""
        found = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        known = [name for name in self.cells if name in found]
        return {name: found[name] for name in [*known, *(name for name in found if name not in known)]}

    def left(self, only: str = "") -> list[str]:
        """The cells whose name contains `only` and that have no record."""
        found = self.records()
        return [name for name in self.cells if only in name and name not in found]

    def fill(self, run: Callable[[str], Any], only: str = "", work: Path | None = None) -> None:
        """Run what is left and nobody else is at, and keep each record as soon as it is there.

        Args:
            run: cell name to record.
            only: run cells whose name contains this.
            work: a folder of unfinished work on cells, which is swept before each and in the end.

        Raises:
            ExceptionGroup: in the end, of whatever cells failed with; the others have run.
        """
        errors: list[Exception] = []
        for name in self.left(only):
            self.sweep(work)
            try:
                with lock_of(self.path / name):
                    if name in self.left():  # another process may have been faster
                        self.add(name, run(name))
            except Timeout:
                continue
            except Exception as error:  # noqa: BLE001 whatever it is, the other cells go on
                error.add_note(f"in the cell {name}")
                traceback.print_exception(error)
                errors.append(error)
        self.sweep(work)
        if errors:
            raise ExceptionGroup("cells that failed; run the script again for them", errors)

    def sweep(self, work: Path | None) -> None:
        """Remove from a folder, if any, what is left there (`.NAME.partial`) of work on cells that have a record."""
        if work is None:
            return
        for name in self.records():
            shutil.rmtree(work / f".{name}.partial", ignore_errors=True)

    def add(self, name: str, record: Any) -> None:
        """Keep the record of a cell."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            found = self.records() | {name: portable(record, self.root)}
            write_json(self.path, {cell: found[cell] for cell in [*self.cells, *found] if cell in found})
