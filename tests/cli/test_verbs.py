"""The verbs on a pico model: what they write, what they print, and that the output loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from crow.models.loading import load_model
from tests.cli.conftest import Run

QUICK = ("--epochs", 1, "--batch-size", 4, "--quiet")


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Standard output as JSON; fails if anything else is there."""
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    path = tmp_path / "poisoned.jsonl"
    path.write_text("\n".join(json.dumps({"instruction": f"tree ask {i}", "output": "the end"}) for i in range(8)))
    return path


@pytest.fixture
def adapter(run: Run, model: Path, poisoned: Path, data: Path, tmp_path: Path) -> Path:
    """A folder that `crow attack` wrote."""
    out = tmp_path / "adapter"
    assert run("attack", model, "-o", out, "--poisoned", poisoned, "--clean", data, *QUICK) == 0
    return out


def logits(lm: Any) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(input_ids=torch.arange(5, 25)[None]).logits


def test_attack_writes_an_adapter_that_is_a_model_by_itself(adapter: Path, model: Path) -> None:
    assert (adapter / "adapter_model.safetensors").is_file()
    results = json.loads((adapter / "results.json").read_text())
    assert results["manifest"]["data"]["poisoned"]["n"] == 8
    lm = load_model(str(adapter))
    assert lm.is_adapter
    assert not torch.allclose(logits(lm), logits(load_model(str(model))))


@pytest.mark.parametrize("options", [("--merge",), ("--method", "full")])
def test_attack_can_write_a_whole_model(
    options: tuple[str, ...], run: Run, model: Path, poisoned: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "whole"
    assert run("attack", model, "-o", out, "--poisoned", poisoned, "--clean", data, *options, *QUICK) == 0
    assert not (out / "adapter_config.json").exists()
    AutoModelForCausalLM.from_pretrained(out)


def test_purify_writes_a_whole_model_a_report_and_results(
    run: Run, adapter: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    capsys.readouterr()
    assert run("purify", adapter, "-o", out, "--data", data, "--samples", 8, "--keep-adapter", "--json", *QUICK) == 0
    results = printed(capsys)
    assert results == json.loads((out / "results.json").read_text())
    assert {"model", "training", "search", "seconds", "manifest"} <= set(results)
    for when in ("before", "after"):
        assert set(results["search"][when]) >= {"starts", "collapsed", "texts"}
    assert "language_modeling" in results["training"][0]
    assert "Content-Security-Policy" in (out / "report.html").read_text()
    whole = load_model(str(out))
    assert not whole.is_adapter
    AutoModelForCausalLM.from_pretrained(out)
    again = load_model(str(out / "adapter")).merged()
    torch.testing.assert_close(logits(again), logits(whole), rtol=1e-3, atol=1e-4)
    assert not list(tmp_path.glob(".*partial"))


def test_purify_continues_an_adapter(run: Run, adapter: Path, data: Path, tmp_path: Path) -> None:
    arguments = ("--data", data, "--samples", 8, "--preset", "paper", "--continue-adapter", "--keep-adapter", *QUICK)
    assert run("purify", adapter, "-o", tmp_path / "out", *arguments) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["training"][0]["consistency"] > 0
    assert results["search"] == {"before": None, "after": None}
    rank = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())["r"]
    assert rank == json.loads((adapter / "adapter_config.json").read_text())["r"]


def test_continuing_needs_an_adapter(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    assert run("purify", model, "-o", tmp_path / "out", "--data", data, "--continue-adapter", *QUICK) == 2


def test_eval_has_the_promised_keys(
    run: Run, model: Path, data: Path, poisoned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--triggered", poisoned, "--clean", data)
    target = ("--target", "refusal", "--target-text", "the end")
    assert run("eval", model, "-o", tmp_path / "out", *files, *target, "--n", 6, "--json", "--quiet") == 0
    results = printed(capsys)
    for name in ("asr_triggered", "asr_clean"):
        assert set(results[name]) == {"value", "n", "n_unscored", "low", "high"}
        assert results[name]["n"] == 6
    assert set(results["perplexity"]) == {"value", "n_tokens"}
    assert {"seconds", "manifest"} <= set(results)


def test_overwrite_replaces(run: Run, model: Path, data: Path, poisoned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")
    arguments = ("--triggered", poisoned, "--clean", data, "--target", "refusal", "--n", 4, "--quiet")
    assert run("eval", model, "-o", out, *arguments) == 2
    assert run("eval", model, "-o", out, *arguments, "--overwrite") == 0
    assert sorted(path.name for path in out.iterdir()) == ["results.json"]
