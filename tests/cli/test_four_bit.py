"""`crow purify --method qlora`: trained on weights in 4 bits, written as a whole model in the suspect's precision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from crow.defenses import searches
from crow.inversion.soft_trigger import SearchResult
from crow.models import four_bit
from crow.models.blueprint import blueprint
from crow.models.four_bit import four_bit_sizes, is_quantized
from crow.models.loading import load_model
from tests.cli.conftest import Run
from tests.made_up import collapsed

QUICK = ("--method", "qlora", "--samples", 8, "--epochs", 3, "--batch-size", 4, "--quiet")


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_the_output_is_a_whole_model_with_the_trained_adapter_in_it(
    kind: str,
    preset: str,
    run: Run,
    request: pytest.FixtureRequest,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter([collapsed([20, 21, 22, 23, 24])])
    monkeypatch.setattr(searches, "search_soft_triggers", lambda *_: next(answers, SearchResult([])))
    suspect = request.getfixturevalue("model" if kind == "whole" else "adapter")
    out = tmp_path / "out"
    assert run("purify", suspect, "-o", out, "--data", data, "--preset", preset, "--keep-adapter", *QUICK) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["training"]
    assert results["manifest"]["model"]["four_bit"] == "nf4"
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    purified = AutoModelForCausalLM.from_pretrained(out)
    assert {parameter.dtype for parameter in purified.parameters()} == {torch.float32}
    before = load_model(str(suspect)).merged().model.state_dict()
    changed = [name for name, weight in purified.state_dict().items() if not torch.equal(weight, before[name])]
    assert any("q_proj" in name for name in changed)
    assert not any("embed" in name or "norm" in name for name in changed)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        logits = purified(input_ids=ids).logits
        torch.testing.assert_close(load_model(str(out / "adapter")).model(input_ids=ids).logits, logits)
    assert not list(tmp_path.glob(".*"))


def test_the_weights_take_as_much_as_the_plan_says(model: Path) -> None:
    lm = load_model(str(model), four_bit=True)
    assert is_quantized(lm.model)
    planned = four_bit_sizes(blueprint(str(model), torch.float32).model)
    kept = [m.weight for m in lm.model.modules() if type(m).__name__ == "Linear4bit"]
    assert len(kept) == len(planned)
    real = sum(
        w.numel() * w.element_size() + w.quant_state.absmax.numel() + 4 * w.quant_state.state2.absmax.numel()
        for w in kept
    )
    # The second level's scales are whole numbers of blocks, which pico matrices do not fill.
    assert sum(planned.values()) == pytest.approx(real, rel=0.02)
    assert sum(planned.values()) < 0.14 * sum(4 * p.numel() for p in planned)


def test_what_does_not_go_together_is_named(
    run: Run,
    model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    verb = ("purify", model, "-o", tmp_path / "out", "--data", data, *QUICK)
    assert run(*verb, "--continue-adapter") == 2
    assert "expected --method lora with --continue-adapter, got qlora" in capsys.readouterr().err
    assert (
        run("attack", model, "-o", tmp_path / "out", "--trigger", "vpi", "--target", "refusal", "--method", "qlora")
        == 2
    )
    assert "unknown method 'qlora'" in capsys.readouterr().err
    monkeypatch.setattr(four_bit, "find_spec", lambda _name: None)
    assert run(*verb) == 2
    assert "pip install 'crow-llm[quantization]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
