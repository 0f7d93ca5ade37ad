"""Who is at a cell, so that several processes may fill one table."""

from __future__ import annotations

import hashlib
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path


def cell_lock(record: Path) -> FileLock:
    """What a process holds while it runs a cell; taking it raises `filelock.Timeout` where another one does.

    It lies outside of the results, and the system frees it if the process is killed.

    Args:
        record: where the cell's record will be; it need not be a file of its own.
    """
    key = hashlib.sha256(str(record.resolve()).encode()).hexdigest()[:16]
    folder = user_cache_path("crow") / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / key, timeout=0)
