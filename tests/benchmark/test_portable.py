from __future__ import annotations

from pathlib import Path

from crow.benchmark.portable import portable


def test_only_the_folder_itself_is_left_out() -> None:
    record = {"model": "/work/models/a", "other": "/home/x/work/y", "url": "https://host/work/z", "list": ["/work/b"]}
    assert portable(record, Path("/work")) == {**record, "model": "models/a", "list": ["b"]}
    assert portable(record, Path("/")) == record
