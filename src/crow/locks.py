"""Who is filling a place, so that no two processes do."""

from __future__ import annotations

import hashlib
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path


def lock_of(place: Path) -> FileLock:
    """What a process holds while it fills a place; taking it raises `filelock.Timeout` where another one does.

    It lies outside of the results, and the system frees it if the process is killed.

    Args:
        place: a folder, or where a record will be; there need not be one.
    """
    key = hashlib.sha256(str(place.resolve()).encode()).hexdigest()[:16]
    folder = user_cache_path("crow") / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / key, timeout=0)
