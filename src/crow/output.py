"""Output folders: taken only when free, filled only with whole files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crow.errors import OutputError
from crow.records import dump_json


def claim_output(folder: Path, overwrite: bool = False, resume: bool = False) -> None:
    """Check that `folder` may be written; nothing is created or removed yet.

    Raises:
        OutputError: if it is a file, cannot be written, or is not empty and neither flag is given.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"expected a folder for the output, got the file {folder}")
    if folder.is_dir() and any(folder.iterdir()) and not (overwrite or resume):
        raise OutputError(f"the output folder {folder} is not empty; choose another, or pass --overwrite or --resume")
    parent = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    if not os.access(parent, os.W_OK):
        raise OutputError(f"the output folder {folder} cannot be written: no permission in {parent}")


def work_folder(folder: Path) -> Path:
    """Where a run that is to fill `folder` keeps its unfinished state: a hidden sibling."""
    absolute = folder.absolute()
    return absolute.with_name(f".{absolute.name}.partial")


def publish(work: Path, folder: Path, names: Iterable[str]) -> None:
    """Move finished files and folders from `work` into `folder`, replacing what was there, and drop `work`.

    Args:
        work: the work folder, on the same file system as `folder`.
        folder: the output folder; what it held before is removed.
        names: what to move.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in names:
        os.replace(work / name, folder / name)
    shutil.rmtree(work, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON so that the file appears whole or not at all."""
    write_text(path, dump_json(value))


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 so that the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
