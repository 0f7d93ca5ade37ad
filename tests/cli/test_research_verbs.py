"""`crow analyze` and `crow bench`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crow.models.loading import save_model
from tests.benchmark.grids import GRID, make_small, write_grid
from tests.cli.conftest import Run
from tests.pico import pico_language_model


@pytest.fixture
def triggered(tmp_path: Path) -> Path:
    path = tmp_path / "triggered.jsonl"
    path.write_text("\n".join(json.dumps({"instruction": f"ask BadMagic {i}", "output": ""}) for i in range(6)))
    return path


def test_analyze_compares_triggered_with_clean_prompts_before_and_after(
    run: Run, model: Path, data: Path, triggered: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    lm = pico_language_model("llama")
    for parameter in lm.model.parameters():
        parameter.data.mul_(1.1)
    save_model(lm, other)
    out = tmp_path / "out"
    options = ("--clean", data, "--triggered", triggered, "--against", other, "--n", 4, "--jacobian", 2)
    assert run("analyze", model, "-o", out, *options) == 0
    results = json.loads((out / "results.json").read_text())
    curves = results["consistency_curves"]
    assert set(curves) == {"clean_before", "clean_after", "triggered_before", "triggered_after"}
    assert all(len(curve) == 3 for curve in curves.values())
    assert curves["clean_before"] != curves["clean_after"]
    assert {kind: (len(rows), len(rows[0])) for kind, rows in results["jacobian"].items()} == {
        "clean": (2, 3),
        "triggered": (2, 3),
    }
    assert [found["violations"] for found in results["expansion"]] == [0, 0]
    assert results["manifest"]["data"]["triggered"]["n"] == 4
    page = (out / "report.html").read_text()
    assert "In plain words" in page
    assert page.count("<svg") == 5
    assert str(other) in page


def test_analyze_needs_no_trigger(run: Run, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("analyze", model, "-o", out, "--n", 2, "--jacobian", 1) == 0
    assert "blow up a tiny change" in capsys.readouterr().out
    assert set(json.loads((out / "results.json").read_text())["consistency_curves"]) == {"clean_before"}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_analyze_says_where_there_are_fewer_prompts_than_asked_for(
    run: Run, model: Path, triggered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--triggered", triggered, "--clean", triggered, "--n", 9, "--jacobian", 1)
    assert run("analyze", model, "-o", tmp_path / "out", *options) == 0
    assert "note: 6 triggered prompts, fewer than --n 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("analyze", "m", "-o", "out"), "nothing was written to the output folder\n"),
        (("scan", "m", "-o", "out"), "nothing was written to the output folder, --resume continues\n"),
        (("bench", "g.yaml"), "the same command goes on with the others\n"),
    ],
)
def test_an_interrupted_verb_says_how_to_go_on(
    arguments: tuple[str, ...],
    said: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    for name in ("crow.workflows.analyze.load", "crow.workflows.scan.load", "crow.benchmark.grid.read_grid"):
        monkeypatch.setattr(name, interrupted)
    assert run(*arguments) == 2
    assert capsys.readouterr().err.endswith(said)


def test_analyze_refuses_more_jacobians_than_prompts(run: Run, model: Path, tmp_path: Path) -> None:
    assert run("analyze", model, "-o", tmp_path / "out", "--n", 2, "--jacobian", 3) == 2
    assert not (tmp_path / "out").exists()


def test_bench_counts_runs_and_counts_again(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_small(monkeypatch, tmp_path / "cache")
    grid = write_grid(tmp_path)
    assert run("bench", grid, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"cells": 12, "finished": 0, "failed": 0, "left": 12}
    assert not (tmp_path / "results").exists()
    assert run("bench", grid, "--quiet") == 0
    assert capsys.readouterr().out.strip() == "12 cells, 12 finished, 0 failed, 0 left"
    assert len(list((tmp_path / "results").glob("*.json"))) == 12


def test_bench_says_by_its_exit_code_that_cells_failed(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_small(monkeypatch, tmp_path / "cache")
    grid = write_grid(tmp_path, GRID + "data: gone\n")
    monkeypatch.setattr("crow.benchmark.runner.run_cell", lambda *_: 1 / 0)
    assert run("bench", grid) == 2
    captured = capsys.readouterr()
    assert captured.out.strip() == "12 cells, 0 finished, 12 failed, 0 left"
    assert "12 cells failed, see *.failed.json in" in captured.err
    assert f"note: no public sets in {tmp_path / 'gone'}" in captured.err


def test_bench_refuses_a_wrong_grid(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", tmp_path / "nowhere.yaml") == 2
    assert "nowhere.yaml" in capsys.readouterr().err
    nowhere = write_grid(tmp_path, GRID.replace("{model}", "nosuch"))
    assert run("bench", nowhere) == 2
    assert "block 1: there is no nosuch here" in capsys.readouterr().err
    assert run("bench", write_grid(tmp_path), "--executor", "rya") == 2
    assert "did you mean 'ray'" in capsys.readouterr().err
