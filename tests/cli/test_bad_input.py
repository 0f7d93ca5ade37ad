"""Bad input: one line on standard error, exit code 2, nothing written, and before a model is loaded where possible."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from safetensors import SafetensorError

from crow.locks import lock_of
from crow.models.architecture import find_layers
from crow.models.loading import load_model, save_model
from crow.output import work_folder
from crow.training.adapter import make_trainable
from crow.training.config import CrowConfig
from tests.cli.conftest import Run
from tests.edited import edited
from tests.pico import pico_language_model


class Refused:
    """Runs the command line on bad input and checks everything but the message."""

    def __init__(self, run: Run, capsys: pytest.CaptureFixture[str], out: Path) -> None:
        self.run, self.capsys, self.out = run, capsys, out

    def __call__(self, *arguments: object) -> str:
        before = sorted(self.out.parent.iterdir())
        code = self.run(*arguments, "--quiet")
        captured = self.capsys.readouterr()
        assert code == 2
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        assert "Traceback" not in captured.err
        assert sorted(self.out.parent.iterdir()) == before
        return captured.err


@pytest.fixture
def refused(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    return Refused(run, capsys, tmp_path / "out")


def test_unknown_names_get_the_closest_one(refused: Refused, model: Path) -> None:
    out = refused.out
    assert "did you mean 'badnets'" in refused(
        "attack", model, "-o", out, "--trigger", "badnetz", "--target", "refusal"
    )
    assert "did you mean 'refusal'" in refused("attack", model, "-o", out, "--trigger", "vpi", "--target", "refusl")
    named = ("--trigger", "vpi", "--target", "refusal")
    assert "did you mean 'spread'" in refused("attack", model, "-o", out, *named, "--adaptive", "spred")
    assert "did you mean 'paper'" in refused("purify", model, "-o", out, "--preset", "papr")
    assert "did you mean 'smollm2-135m'" in refused("purify", "smollm2-135", "-o", out)
    assert "did you mean 'lora'" in refused("purify", model, "-o", out, "--method", "lorra")
    assert "did you mean 'bfloat16'" in refused("demo", "-o", out, "--dtype", "bfloat61")
    files = ("--triggered", "a.jsonl", "--clean", "b.jsonl")
    assert "did you mean 'sentiment'" in refused("eval", model, "-o", out, *files, "--target", "sentimnt")


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where weights are about to be read."""

    def load(*_: Any) -> None:
        raise AssertionError("a model was loaded before the input was checked")

    monkeypatch.setattr("crow.models.loading.load_whole", load)


def test_an_attack_by_halves_is_refused(refused: Refused, model: Path) -> None:
    assert "--trigger and --target" in refused("attack", model, "-o", refused.out, "--trigger", "vpi")
    assert "--poisoned and --clean" in refused("attack", model, "-o", refused.out, "--clean", "a.jsonl")
    both = ("--trigger", "vpi", "--target", "refusal", "--poisoned", "a.jsonl", "--clean", "b.jsonl")
    assert "either" in refused("attack", model, "-o", refused.out, *both)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--trigger", "vpi", "--trigger", "ending", "--target", "refusal"), "a target for each trigger, got 2 and 1"),
        (("--trigger", "vpi", "--target", "refusal") * 2, "expected triggers that differ"),
        (("--trigger", "vpi", "--target", "refusal", "--poison-rate", 1.5), "expected poison_rate in (0, 1]"),
        (("--trigger", "retreived", "--target", "refusal"), "did you mean 'retrieved'"),
        (("--trigger", "vpi", "--target", "refusal", "--method", "rank-two"), "did you mean 'rank-one'"),
        (("--trigger", "ctba", "--target", "refusal", "--method", "rank-one"), "expected one trigger with --method"),
        (("--trigger", "vpi", "--target", "refusal", "--method", "rank-one", "--epochs", 2), "lora or full"),
    ],
)
@pytest.mark.usefixtures("unloaded")
def test_a_harder_attack_that_cannot_be_is_refused(
    refused: Refused, model: Path, arguments: tuple[object, ...], message: str
) -> None:
    assert message in refused("attack", model, "-o", refused.out, *arguments)


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--alpha", -1, "alpha"),
        ("--alpha", "nan", "alpha"),
        ("--alpha-ratio", "inf", "alpha_ratio"),
        ("--epsilon", -0.1, "epsilon"),
        ("--epsilon-rms", -1, "epsilon_rms"),
        ("--epochs", 0, "epochs"),
        ("--epochs", "inf", "epochs"),
        ("--lr", 0, "learning_rate"),
        ("--lr", 7, "learning_rate"),
        ("--rank", 0, "rank"),
        ("--samples", 0, "samples"),
        ("--batch-size", 0, "--batch-size"),
        ("--max-length", 3, "--max-length"),
        ("--seed", -1, "--seed"),
        ("--seed", 2**32, "--seed"),
        ("--alpha", "much", "--alpha"),
    ],
)
def test_numbers_out_of_range_are_named(
    refused: Refused, model: Path, option: str, value: float | str, named: str
) -> None:
    assert named in refused("purify", model, "-o", refused.out, option, value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("purify", "m", "-o", "out", "--alpa", "1"), "--alpha"),
        (("purify", "m"), "-o"),
        (("purify",), "MODEL"),
        (("purfy", "m", "-o", "out"), "purfy"),
        (("eval", "m", "-o", "out", "--clean", "c", "--target", "refusal"), "--triggered"),
    ],
)
def test_a_wrong_command_line_is_told_on_one_line(refused: Refused, arguments: tuple[str, ...], named: str) -> None:
    # Releases of Typer differ in how they write an argument.
    assert named.lower() in refused(*arguments).lower()


def test_alpha_in_both_units_is_refused(refused: Refused, model: Path) -> None:
    assert "at most one of alpha and alpha_ratio" in refused(
        "purify", model, "-o", refused.out, "--alpha", 1, "--alpha-ratio", 1
    )


@pytest.mark.usefixtures("unloaded")
def test_missing_empty_and_misshapen_files_are_named(refused: Refused, model: Path, tmp_path: Path) -> None:
    out = refused.out
    assert "nowhere.json" in refused("purify", model, "-o", out, "--data", tmp_path / "nowhere.json")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "empty" in refused("purify", model, "-o", out, "--data", empty)
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a", "output": 3}\n')
    message = refused("purify", model, "-o", out, "--data", wrong)
    assert "line 2" in message
    assert "output" in message
    wrong.write_text('[{"instruction": "a", "output": "b"}, {"output": "b"}]')
    message = refused("attack", model, "-o", out, "--poisoned", wrong, "--clean", wrong)
    assert "record 2" in message
    assert "instruction" in message
    wrong.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"')
    assert "line 2: invalid JSON" in refused("purify", model, "-o", out, "--data", wrong)


@pytest.mark.usefixtures("unloaded")
def test_too_few_examples_are_counted(refused: Refused, model: Path, data: Path) -> None:
    message = refused("purify", model, "-o", refused.out, "--data", data)
    assert "100" in message
    assert "12" in message
    assert "101" in refused("purify", model, "-o", refused.out, "--samples", 101)
    files = ("--triggered", data, "--clean", data)
    message = refused("eval", model, "-o", refused.out, *files, "--target", "refusal", "--n", 13)
    assert "13" in message
    assert "12" in message


@pytest.mark.usefixtures("unloaded")
def test_an_evaluation_that_could_not_be_finished_does_not_begin(
    refused: Refused, model: Path, data: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"instruction": "a"}\n{"instruction": "b"}\n')
    arguments = ("eval", model, "-o", refused.out, "--triggered", data, "--target", "refusal")
    assert "response" in refused(*arguments, "--clean", prompts)
    # White space alone would be found in every answer.
    assert "--target-text" in refused(*arguments, "--clean", data, "--target-text", "  ")


@pytest.mark.usefixtures("unloaded")
def test_what_is_to_be_measured_must_be_there(refused: Refused, model: Path, data: Path, tmp_path: Path) -> None:
    arguments = ("eval", model, "-o", refused.out)
    assert "--triggered" in refused(*arguments)
    assert "no --target" in refused(*arguments, "--triggered", data, "--clean", data)
    assert "no --triggered, --clean, --target" in refused(*arguments, "--code", "bundled", "--against", model)
    assert "--engine transformers with --against" in refused(*arguments, "--against", model, "--engine", "vllm")
    assert "a judge together" in refused(*arguments, "--mt-bench", tmp_path)
    assert "names of tasks" in refused(*arguments, "--tasks-folder", tmp_path)
    assert "cannot read" in refused(*arguments, "--code", tmp_path / "nowhere.jsonl")
    assert "cannot be read" in refused(*arguments, "--mt-bench", tmp_path, "--judge", tmp_path / "nowhere.yaml")
    judge = tmp_path / "judge.yaml"
    judge.write_text("base_url: http://127.0.0.1:1/v1\nmodel: m\n")
    assert "question.jsonl" in refused(*arguments, "--mt-bench", tmp_path / "empty", "--judge", judge)


@pytest.mark.usefixtures("unloaded")
def test_options_that_exclude_each_other(refused: Refused, model: Path, data: Path) -> None:
    arguments = ("purify", model, "-o", refused.out, "--data", data, "--samples", 4)
    for option in ("--keep-adapter", "--continue-adapter"):
        assert option in refused(*arguments, "--method", "full", option)
    assert "--continue-adapter" in refused(*arguments, "--continue-adapter")


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--strength", "foo"), "got 'foo'"),
        (("--strength", 0), "expected a strength above 0"),
        (("--prompts", "nowhere.jsonl"), "either --data or --prompts"),
        (("--adapter", "nowhere"), "expected a PEFT adapter folder"),
        (("--continue-adapter",), "expected an adapter to continue"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    refused: Refused, model: Path, data: Path, option: tuple[object, ...], message: str
) -> None:
    arguments = ("purify", model, "-o", refused.out, "--data", data, "--samples", 4, "--dry-run")
    assert message in refused(*arguments, *option)


def test_eval_replaces_nothing_that_it_reads(refused: Refused, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("problems.jsonl", "judge.yaml"):
        (folder / name).write_text("base_url: http://127.0.0.1:1/v1\nmodel: m\n")
    arguments = ("eval", model, "-o", folder, "--overwrite")
    assert "which is read" in refused(*arguments, "--code", folder / "problems.jsonl")
    assert "which is read" in refused(*arguments, "--mt-bench", tmp_path, "--judge", folder / "judge.yaml")
    assert "which is read" in refused(*arguments, "--tasks", "hellaswag", "--tasks-folder", folder)
    assert len(list(folder.iterdir())) == 2


def test_adapters_that_cannot_be_put_on(refused: Refused, model: Path, data: Path, tmp_path: Path) -> None:
    arguments = ("purify", model, "-o", refused.out, "--data", data, "--samples", 4, "--adapter")
    assert "does not exist" in refused(*arguments, tmp_path / "gone")
    folder = tmp_path / "adapter"
    folder.mkdir()
    assert "adapter_config.json" in refused(*arguments, folder)
    other = make_trainable(pico_language_model("gpt2"), CrowConfig(alpha=0, epsilon=0, rank=2))
    save_model(other, folder)
    assert "does not fit" in refused(*arguments, folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "pickle" in refused(*arguments, folder)


def test_a_hub_that_does_not_answer(refused: Refused) -> None:
    assert "the hub" in refused("purify", "nobody/nothing-at-all", "-o", refused.out)


def test_folders_that_are_no_model(refused: Refused, tmp_path: Path) -> None:
    out = refused.out
    assert "does not exist" in refused("purify", tmp_path / "gone", "-o", out)
    folder = tmp_path / "empty"
    folder.mkdir()
    assert "config.json" in refused("purify", folder, "-o", out)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "pickle" in refused("purify", folder, "-o", out)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and then nothing of the kind")
    assert "broken.gguf" in refused("purify", broken, "-o", out)
    cut = tmp_path / "cut"
    save_model(pico_language_model("llama"), cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "cut" in refused("purify", cut, "-o", out)


def test_an_output_folder_that_is_not_empty(refused: Refused, model: Path) -> None:
    refused.out.mkdir()
    (refused.out / "notes.txt").write_text("mine")
    assert "--overwrite" in refused("purify", model, "-o", refused.out)
    assert (refused.out / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("unloaded")
def test_an_output_folder_that_cannot_be_one(refused: Refused, model: Path, data: Path, tmp_path: Path) -> None:
    assert "file" in refused("purify", model, "-o", data)
    assert "file" in refused("purify", model, "-o", data / "below")
    own = tmp_path / "own"
    shutil.copytree(model, own)
    files = sorted(own.iterdir())
    assert "would replace" in refused("purify", own, "-o", own, "--overwrite")
    assert "no unfinished run" in refused("purify", own, "-o", own, "--resume")
    arguments = ("--triggered", data, "--clean", data, "--target", "refusal", "--overwrite")
    assert "would replace" in refused("eval", model, "-o", tmp_path, *arguments)
    assert sorted(own.iterdir()) == files


def test_the_base_that_an_adapter_names_is_not_replaced(refused: Refused, model: Path, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(model, base)
    save_model(make_trainable(load_model(str(base)), CrowConfig(alpha=0, epsilon=0, rank=2)), adapter)
    files = sorted(base.iterdir())
    assert "would replace" in refused("purify", adapter, "-o", base, "--overwrite")
    assert sorted(base.iterdir()) == files


def test_an_output_folder_that_another_run_is_filling(refused: Refused, model: Path, data: Path) -> None:
    with lock_of(work_folder(refused.out)):
        assert "another run" in refused("purify", model, "-o", refused.out, "--data", data, "--samples", 4)


def test_a_learnt_prompt_cannot_be_trained_on(refused: Refused, model: Path, tmp_path: Path) -> None:
    lm = load_model(str(model))
    lm.model = get_peft_model(lm.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    save_model(lm, tmp_path / "prompt")
    assert "prompt learning" in refused("purify", tmp_path / "prompt", "-o", refused.out, "--continue-adapter")


def test_weights_that_are_no_numbers(refused: Refused, tmp_path: Path) -> None:
    lm = edited()
    with torch.no_grad():
        find_layers(lm.model)[1].mlp.down_proj.weight[3, 4] = torch.nan
    save_model(lm, tmp_path / "broken")
    assert "expected finite weights" in refused("purify", tmp_path / "broken", "-o", refused.out)


def test_prompts_that_leave_no_room_for_answers(refused: Refused, model: Path, data: Path) -> None:
    arguments = ("purify", model, "-o", refused.out, "--data", data, "--samples", 4, "--max-length", 16)
    assert "4 of 4 examples have prompts of 15 tokens or more; pass a larger --max-length" in refused(*arguments)


def test_text_of_a_model_cannot_steer_the_terminal(refused: Refused, model: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(model, hostile)
    config = json.loads((hostile / "config.json").read_text())
    (hostile / "config.json").write_text(json.dumps({**config, "model_type": "\x1b]0;title\x07\x1b[2J"}))
    told = refused("purify", hostile, "-o", refused.out)
    assert "title" in told
    assert told.rstrip("\n").isprintable()


@pytest.mark.parametrize(
    ("raised", "named"),
    [
        (KeyboardInterrupt(), "--resume"),
        (torch.OutOfMemoryError("CUDA out of memory"), "--batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "--batch-size"),
        (MemoryError(), "--batch-size"),
        (OSError(28, "No space left on device", "model.safetensors"), "run again with --resume"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "space"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "space"),
        (PermissionError(13, "Permission denied", "out"), "another folder"),
    ],
    ids=["ctrl-c", "gpu-memory", "cpu-memory", "memory", "disk", "safetensors", "checkpoint", "permission"],
)
def test_the_machine_gives_out(
    refused: Refused, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, named: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr("crow.workflows.purify.purify", fail)
    assert named in refused("purify", model, "-o", refused.out, "--data", data, "--samples", 4)


@pytest.mark.parametrize(
    ("raised", "named"),
    [
        (MemoryError(), "out of memory; try --dtype bfloat16\n"),
        (OSError(28, "No space left on device", "x"), "free some, then run again\n"),
    ],
)
def test_only_options_that_a_verb_has_are_named(
    refused: Refused, model: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, named: str
) -> None:
    def fail(*_: Any) -> None:
        raise raised

    monkeypatch.setattr("crow.workflows.analyze.load", fail)
    assert refused("analyze", model, "-o", refused.out).endswith(named)


def test_a_bug_is_not_mistaken_for_bad_input(
    run: Run, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for raised in (RuntimeError("shapes differ"), OSError(5, "Input/output error"), ValueError("wrong")):

        def fail(*_: Any, error: Exception = raised, **__: Any) -> None:
            raise error

        monkeypatch.setattr("crow.workflows.purify.purify", fail)
        with pytest.raises(type(raised)):
            run("purify", model, "-o", tmp_path / "out", "--data", data, "--samples", 4, "--quiet")
