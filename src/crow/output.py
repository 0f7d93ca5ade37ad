"""Output folders: taken only when free, filled only with whole files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crow.errors import OutputError
from crow.records import dump_json


def claim_output(
    folder: Path, overwrite: bool = False, resume: bool = False, inputs: Iterable[str | Path | None] = ()
) -> None:
    """Check that `folder` may be written; nothing is created or removed yet.

    Args:
        folder: the output folder.
        overwrite: what it holds may be replaced.
        resume: likewise, where an unfinished run of it is there to go on with.
        inputs: what the run reads; those that are paths must not be replaced by its output.

    Raises:
        OutputError: if it is a file, cannot be written, holds an input, or is not empty and no flag
            allows for that.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"expected a folder for the output, got the file {folder}")
    unfinished = work_folder(folder).is_dir()
    if folder.is_dir() and any(folder.iterdir()) and not (overwrite or (resume and unfinished)):
        ways = "--overwrite or --resume" if unfinished else "--overwrite"
        nothing = ", and no unfinished run is there to resume" if resume else ""
        raise OutputError(f"the output folder {folder} is not empty{nothing}; choose another, or pass {ways}")
    for path in (Path(name).expanduser() for name in inputs if name is not None):
        if path.exists() and path.resolve().is_relative_to(folder.resolve()):
            raise OutputError(f"the output folder {folder} would replace {path}, which is read; choose another")
    for path in (folder, work_folder(folder)):
        parent = next(p for p in [path, *path.absolute().parents] if p.exists())
        if not parent.is_dir():
            raise OutputError(f"expected a folder for the output, but {parent} on the way to it is a file")
        if not os.access(parent, os.W_OK):
            raise OutputError(f"the output folder {folder} cannot be written: no permission in {parent}")


def work_folder(folder: Path) -> Path:
    """Where a run that is to fill `folder` keeps its unfinished state: a hidden sibling."""
    whole = Path(os.path.abspath(folder))  # noqa: PTH100 a link's own name, not its target's
    return whole.with_name(f".{whole.name}.partial")


def publish(work: Path, folder: Path) -> None:
    """Move everything in `work` into `folder`, in place of what was there, and drop `work`.

    `folder` itself stays, as it may be a mount point or where somebody's shell stands. Configurations come last:
    without them a folder is no model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink()
    for path in sorted(work.iterdir(), key=lambda path: path.name.endswith("config.json")):
        shutil.move(path, folder / path.name)
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
