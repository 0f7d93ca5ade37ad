from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from crow.benchmark.executors import in_process, on_ray
from crow.benchmark.grid import read_grid
from crow.benchmark.runner import status
from crow.errors import ConfigError
from tests.benchmark.grids import run_one_small, write_grid


def test_in_process_one_cell_follows_the_other() -> None:
    done = []
    assert list(in_process(done.append, ["a", "b"])) == [None, None]
    assert done == ["a", "b"]


def test_without_ray_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"crow-llm\[ray\]"):
        list(on_ray(print, []))


def test_two_workers_of_a_ray_cluster_share_a_grid(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="needs Ray (extra 'ray')")
    path, cache = write_grid(tmp_path), tmp_path / "cache"
    grid = read_grid(path)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        done = list(on_ray(partial(run_one_small, path, cache), grid.cells))
    finally:
        ray.shutdown()
    assert len(done) == 12
    assert status(grid) == {"cells": 12, "finished": 12, "failed": 0, "left": 0}
    assert len(list(cache.glob("worker-*"))) == 2
    assert len(list((cache / "suspects").glob("*/manifest.json"))) == 2  # each planted by one, the other waited
