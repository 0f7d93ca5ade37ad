"""What an unfinished run was asked for: only the same request may go on with it.

Otherwise one model's searches and checkpoints would be taken for another's, and the manifest would name the wrong one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from crow.errors import ConfigError, DataError
from crow.models.processes import agreed, is_first
from crow.models.sources import hash_file
from crow.output import write_json
from crow.records import to_json

ASKED = "asked.json"


def same_request(work: Path, request: dict[str, Any]) -> None:
    """Check that what is unfinished in `work` was asked for in the same way.

    Args:
        work: the work folder of a run that resumes.
        request: see `asked`; what only one of the two names, as another version of crow may, is not compared.

    Raises:
        ConfigError: if not.
    """
    path = work / ASKED
    before = agreed(json.loads(path.read_text(encoding="utf-8")) if is_first() and path.is_file() else {})
    other = changed(before, request)
    if other:
        raise ConfigError(
            f"expected --resume with what the unfinished run was given, but {', '.join(other)} changed; "
            "leave out --resume to start anew"
        )


def changed(before: dict[str, Any], request: dict[str, Any]) -> list[str]:
    """The names that two requests say differently; what only one of them names is not compared."""
    return sorted(name for name in before.keys() & request.keys() if before[name] != request[name])


def remember(work: Path, request: dict[str, Any]) -> None:
    """Keep what a run is asked for in its work folder."""
    write_json(work / ASKED, request)


def forget(work: Path) -> None:
    """Remove the work folder of a run that has kept nothing but what it was asked for."""
    if work.is_dir() and [path.name for path in work.iterdir()] == [ASKED]:
        shutil.rmtree(work, ignore_errors=True)


def asked(
    inputs: Iterable[str | Path | None], settings: dict[str, Any], written: Iterable[Path] = ()
) -> dict[str, Any]:
    """A request as plain JSON values, the same for the same request.

    Args:
        inputs: what the run reads: references of models, or paths.
        settings: name to value of what else its result depends on; dataclasses are spread out.
        written: folders that the run fills, which may lie in one that it reads.
    """
    own = [folder.resolve() for folder in written]
    found = {"what is read": [None if name is None else identity(name, own) for name in inputs]}
    for name, value in to_json(settings).items():
        found |= value if isinstance(value, dict) else {name: value}
    return found


def identity(reference: str | Path, written: Sequence[Path] = ()) -> Any:
    """What tells an input from another: a file's hash, a folder's files with sizes and times, or the name itself.

    Raises:
        DataError: for a file that cannot be read.
    """
    path = Path(reference).expanduser()
    if path.is_file():
        try:
            return hash_file(path)
        except OSError as error:
            raise DataError(f"expected a readable file, got {path}: {error.strerror}") from None
    if path.is_dir():
        found = (file for file in path.rglob("*") if file.is_file())
        files = sorted(f for f in found if not any(f.resolve().is_relative_to(folder) for folder in written))
        return [[str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    return str(reference)
