"""`crow scan`: what it writes, and that its exit code is the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crow.scan.evidence import Evidence
from crow.scan.verdict import Finding
from crow.workflows import scan as workflow
from tests.cli.conftest import Run
from tests.scan.test_gather import SMALL, _few_texts  # noqa: F401 the fixture keeps scans small


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("crow.scan.gather", "crow.workflows.purify"):
        monkeypatch.setattr(f"{module}.ScanConfig", lambda: SMALL)
    monkeypatch.setattr(workflow, "scan_examples", dict)


@pytest.mark.parametrize(("verdict", "code"), [("no evidence", 0), ("suspicious", 1), ("inconclusive", 3)])
def test_the_exit_code_is_the_verdict(
    verdict: str,
    code: int,
    run: Run,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(workflow, "gather", lambda *_: Evidence())
    monkeypatch.setattr(workflow, "judge", lambda *_: Finding(verdict, ["Because <b>."], ["Go."], ["key"]))
    out = tmp_path / "out"
    assert run("scan", model, "-o", out, "--quiet") == code
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == verdict
    assert "Because <b>." in shown
    results = json.loads((out / "results.json").read_text())
    assert (results["verdict"], results["targets"], results["triggers"]) == (verdict, ["Go."], ["key"])
    assert "Because &lt;b&gt;." in (out / "report.html").read_text()


def test_a_scan_of_a_harmless_model_and_its_adapter(
    run: Run, model: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    capsys.readouterr()
    assert run("scan", model, "-o", out, "--adapter", adapter, "--seed", 3, "--json", "--quiet") == 0
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads((out / "results.json").read_text())
    assert results["verdict"] == "no evidence"
    assert results["manifest"]["seed"] == 3
    assert results["manifest"]["config"]["searches"] == SMALL.searches
    assert len(results["evidence"]["adapter"]["modules"]) > 0
    assert (out / "report.html").read_text().count("<svg") == 6
    assert not list(tmp_path.glob(".out.partial"))


def test_an_interrupted_scan_is_resumed(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("crow.scan.consistency.search", killed)
        assert run("scan", model, "-o", out, "--quiet") == 2
    assert not out.exists()
    assert "--resume" in capsys.readouterr().err
    monkeypatch.setattr("crow.scan.soft_triggers.search", killed)
    assert run("scan", model, "-o", out, "--quiet", "--resume") == 0
    assert (out / "results.json").is_file()


def test_what_the_user_can_mend_is_exit_code_2(
    run: Run, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("scan", tmp_path / "nowhere", "-o", tmp_path / "out") == 2
    assert run("scan", model, "-o", tmp_path / "out", "--adapter", tmp_path / "nowhere") == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert run("scan", model, "-o", tmp_path / "full") == 2
    assert "--overwrite" in capsys.readouterr().err


QUICK = ("--preset", "paper", "--epochs", 1, "--samples", 4, "--quiet")


def test_purify_scans_first_and_tells(
    run: Run, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow, "gather", lambda *_: Evidence())
    monkeypatch.setattr(workflow, "judge", lambda *_: Finding("suspicious", ["Because <b>."], ["Go <i>."], ["key"]))
    out = tmp_path / "out"
    assert run("purify", model, "-o", out, "--data", data, "--scan", *QUICK) == 0
    scan = json.loads((out / "results.json").read_text())["scan"]
    assert (scan["verdict"], scan["targets"], scan["triggers"]) == ("suspicious", ["Go <i>."], ["key"])
    assert scan["seconds"] >= 0
    page, card = (out / "report.html").read_text(), (out / "README.md").read_text()
    assert "Because &lt;b&gt;." in page
    assert "Before anything was changed. Suspicious: the model behaves as one with a backdoor does." in page
    for text in (page, card):
        assert "suspicious; 1 target text and 1 candidate for a trigger are on record" in text
    assert "Because" not in card


def test_purify_goes_on_with_an_interrupted_scan(
    run: Run, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("crow.scan.leakage.search", killed)
        assert run("purify", model, "-o", out, "--data", data, "--scan", *QUICK) == 2
    assert not out.exists()
    monkeypatch.setattr("crow.scan.soft_triggers.search", killed)
    assert run("purify", model, "-o", out, "--data", data, "--scan", *QUICK, "--resume") == 0
    results = json.loads((out / "results.json").read_text())
    assert len(results["scan"]["evidence"]["soft_triggers"]["searches"]) == 1
    assert len(results["training"]) > 0
    assert (out / "report.html").read_text().count("Not looked at.") == 0


def test_purify_without_a_scan_says_nothing_of_one(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("purify", model, "-o", out, "--data", data, *QUICK) == 0
    assert "scan" not in json.loads((out / "results.json").read_text())
    assert "Scan of the suspect" not in (out / "report.html").read_text()
