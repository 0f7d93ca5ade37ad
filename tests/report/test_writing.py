from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crow.report import render_report, write_report


def test_write_replaces_whole_files_and_leaves_nothing_else(tmp_path: Path):
    path = tmp_path / "new" / "report.html"
    purified = {"model": "someone/model", "answers": [{"prompt": "p", "after": "ü \ud800"}]}
    write_report(purified, path, "First")
    write_report(purified, path, "Second")
    assert path.read_text(encoding="utf-8") == render_report(purified, "Second")
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_failed_write_keeps_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch, step):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail_half_way(self: Path, *args: Any, **kwargs: Any) -> None:
        self.write_bytes(b"half a pa")
        raise OSError("disk full")

    def fail(*args: Any) -> None:
        raise OSError("disk full")

    if step == "write":
        monkeypatch.setattr(Path, "write_text", fail_half_way)
    else:
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report({}, path, "New")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_report_needs_no_tensor_library():
    script = "import sys, crow.report; print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
