from __future__ import annotations

import dataclasses
import json
import multiprocessing
import random
import time
from pathlib import Path

import pytest

from crow.benchmark import runner
from crow.benchmark.executors import get_executor, in_process
from crow.benchmark.grid import Cell, Grid, asked, read_grid
from crow.benchmark.runner import check_records, failure_path, read_records, record_path, report_grid, run_grid, status
from crow.errors import ConfigError, DataError
from crow.locks import lock_of
from crow.workflows.common import Reporter
from tests.benchmark.grids import make_small, run_in_child, run_small, write_grid

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    folder = tmp_path_factory.mktemp("grid")
    return run_small(write_grid(folder), folder / "cache")


def test_every_cell_has_a_record_with_what_was_measured(finished: Grid) -> None:
    assert status(finished) == {"cells": 12, "finished": 12, "failed": 0, "left": 0}
    records = list(read_records(finished).values())
    assert [(r["attack"], r["target"], r["defense"], r["seed"]) for r in records[:4]] == [
        ("badnets", "refusal", "none", 0),
        ("badnets", "refusal", "none", 1),
        ("badnets", "refusal", "quantization-4", 0),
        ("badnets", "refusal", "quantization-4", 1),
    ]
    for record in records:
        assert record["metrics"].keys() >= {"asr_triggered", "asr_clean", "perplexity", "seconds"}
        assert record["metrics"]["asr_triggered"]["n"] == 3
        assert record["manifest"]["data"]["purification"]["n"] == 4
        assert record["needs"] == ("clean data" if "wanda" in record["defense"] else "nothing")
        assert str(finished.output.parent / "cache") not in json.dumps(record)
    by_defense = {r["defense"]: r["metrics"]["perplexity"]["value"] for r in records if r["attack"] == "badnets"}
    assert len(set(by_defense.values())) == 3


def test_cells_of_one_attack_share_its_model(finished: Grid) -> None:
    records = read_records(finished).values()
    used = {r["attack"]: set() for r in records}
    for record in records:
        used[record["attack"]].add(json.dumps(record["manifest"]["model"]["merged"]))
    assert [len(adapters) for adapters in used.values()] == [1, 1]
    suspects = finished.output.parent / "cache" / "suspects"
    assert len(list(suspects.glob("*/manifest.json"))) == 2
    assert not list(suspects.glob("*.partial"))


MEASURED = """
name: measured
n: 3
samples: 4
models: [{model}]
output: results
code: problems.jsonl
kept: true
blocks:
  - attacks: [vpi-code_injection, badnets-refusal]
    defenses: [none]
"""
SEARCHED = """
name: searched
n: 3
samples: 4
models: [{model}]
output: results
blocks:
  - attacks: [badnets-refusal]
    defenses: [none, [crow, quantization-8]]
"""


def test_a_grid_can_ask_what_is_kept_and_whether_code_runs(tmp_path: Path) -> None:
    problem = {"task_id": "t/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(c):\n    assert c()"}
    (tmp_path / "problems.jsonl").write_text(json.dumps(problem))
    grid = run_small(write_grid(tmp_path, MEASURED), tmp_path / "cache")
    inside_code, refusal = (record["metrics"] for record in read_records(grid).values())
    assert inside_code["code"].keys() == {"problems", "pass_at_1", "pass_at_1_triggered"}
    assert refusal["code"].keys() == {"problems", "pass_at_1"}  # a refusal is no working code
    for metrics in (inside_code, refusal):  # nothing was done to the model
        assert metrics["kept"]["unchanged_answers"]["value"] == 1.0
        assert metrics["kept"]["divergence"] == pytest.approx(0, abs=1e-5)
        assert metrics["kept"]["before"] == metrics["kept"]["after"]
    report_grid(grid)
    page = (grid.output / "report.html").read_text()
    assert "pass@1 with the trigger, problems.jsonl" in page
    assert "KL from the suspect" in page


def test_the_record_of_a_defense_that_searches_says_what_it_saw_and_none_of_its_text(tmp_path: Path) -> None:
    untreated, stacked = read_records(run_small(write_grid(tmp_path, SEARCHED), tmp_path / "cache")).values()
    assert "search" not in untreated
    assert stacked["search"].keys() == {"before", "after"}
    for seen in stacked["search"].values():
        assert 0 <= seen["collapsed"] <= seen["starts"] == len(seen["identities"]) > 0
        assert "texts" not in seen


def test_a_rerun_changes_nothing(finished: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in finished.output.iterdir()}
    monkeypatch.setattr(runner, "run_cell", lambda *_: pytest.fail("a finished cell ran again"))
    run_grid(finished, QUIET)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in finished.output.iterdir()} == before


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Grid:
    make_small(monkeypatch, tmp_path / "cache")
    return read_grid(write_grid(tmp_path))


def test_a_failed_cell_is_recorded_and_the_others_go_on(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = grid.cells[1]

    def run(cell: Cell, *_: object) -> dict[str, str]:
        if cell == bad:
            raise DataError("no such\nset")
        return {"name": cell.name}

    monkeypatch.setattr(runner, "run_cell", run)
    assert run_grid(grid, QUIET) == {"cells": 12, "finished": 11, "failed": 1, "left": 0}
    said = json.loads(failure_path(grid, bad).read_text())
    assert said == {"cell": bad.name, "error": "DataError", "message": "no such set"}
    monkeypatch.setattr(runner, "run_cell", lambda cell, *_: {"name": cell.name})
    assert run_grid(grid, QUIET)["failed"] == 1
    assert run_grid(grid, QUIET, retry=True) == {"cells": 12, "finished": 12, "failed": 0, "left": 0}
    assert not failure_path(grid, bad).exists()


def test_a_cell_that_another_process_runs_is_left_to_it(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run_cell", lambda cell, *_: {"name": cell.name})
    with lock_of(record_path(grid, grid.cells[0])):
        assert run_grid(grid, QUIET)["left"] == 1
    assert run_grid(grid, QUIET)["left"] == 0


def test_records_of_another_request_are_not_taken_for_this_ones(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run_cell", lambda cell, grid, _: {"asked": asked(cell, grid)})
    run_grid(grid, QUIET)
    check_records(grid)
    with pytest.raises(ConfigError, match=f"with n {grid.n}, and the grid asks for 99"):
        check_records(dataclasses.replace(grid, n=99))
    path = record_path(grid, grid.cells[0])
    path.write_text("{}")  # of a version that did not say
    check_records(dataclasses.replace(grid, cells=grid.cells[:1], n=99))


def test_cells_run_in_the_order_of_the_grid(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Cell] = []
    monkeypatch.setattr(runner, "run_cell", lambda cell, *_: ran.append(cell) or {})
    run_grid(grid, QUIET)
    assert tuple(ran) == grid.cells


def test_kill_minus_nine_at_ten_moments_loses_and_changes_nothing(tmp_path: Path) -> None:
    path, cache = write_grid(tmp_path), tmp_path / "cache"
    grid = read_grid(path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.benchmark.grids"])
    seen: dict[Path, tuple[bytes, int]] = {}
    rng = random.Random(0)

    def unchanged() -> None:
        for path, (content, time_written) in seen.items():
            assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, time_written)
        for cell in grid.cells:
            path = record_path(grid, cell)
            if path.is_file():
                json.loads(path.read_text())
                seen[path] = (path.read_bytes(), path.stat().st_mtime_ns)

    kills, longest = 0, 1.5
    while kills < 10 or not status(grid)["finished"]:
        child = context.Process(target=run_in_child, args=(path, cache))
        child.start()
        time.sleep(rng.uniform(0.2, longest))
        child.kill()
        child.join()
        unchanged()
        kills += 1
        # On a busy machine the first cell may take longer than any of the ten moments.
        longest *= 1 if kills < 10 else 2
    child = context.Process(target=run_in_child, args=(path, cache))
    child.start()
    child.join()
    unchanged()
    assert child.exitcode == 0
    assert status(grid) == {"cells": 12, "finished": 12, "failed": 0, "left": 0}
    assert not list((cache / "suspects").glob("*.partial"))


def test_an_unknown_executor_is_refused() -> None:
    assert get_executor("in-process") is in_process
    with pytest.raises(ConfigError, match="did you mean 'ray'"):
        get_executor("rai")
