"""The scripts in `benchmarks/`, loaded as modules."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@contextmanager
def loaded_script(name: str) -> Iterator[ModuleType]:
    """A script as a module of that name, as long as the context lasts; what it imports from its own folder is found."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        patch.setitem(sys.modules, name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


def copied_page(script: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """A copy of the page that the script publishes its table in; from now on it writes there."""
    known = script.publish.__globals__
    page = folder / "beyond.md"
    page.write_text(known["BEYOND"].read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setitem(known, "BEYOND", page)
    return page
