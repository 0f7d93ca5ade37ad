"""The command itself: help, notes and streams."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from crow.models.language_model import LanguageModel
from crow.models.loading import save_model
from tests.cli.conftest import Run
from tests.gguf_file import write_gguf
from tests.pico import pico, pico_tokenizer

VERBS = ("attack", "purify", "eval", "demo")
OTHER_VERBS = ("analyze", "bench", "scan")


def test_without_arguments_it_prints_help(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert all(verb in captured.out for verb in (*VERBS, *OTHER_VERBS))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_the_common_options(verb: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    text = capsys.readouterr().out
    common = "seed device dtype batch-size max-length overwrite json quiet"
    assert all(f"--{name}" in text for name in common.split())
    assert ("--resume" in text) is (verb != "eval")  # which begins again


def test_help_does_not_wait_for_the_tensor_library() -> None:
    code = (
        "import sys; sys.argv = ['crow', 'purify', '--help']\n"
        "import crow.cli; crow.cli.main()\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--preset" in done.stdout


def test_it_can_be_run_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "crow", "purfy"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("crow: ")
    assert done.stderr.count("\n") == 1


@pytest.fixture
def eval_arguments(data: Path, tmp_path: Path) -> tuple[object, ...]:
    return ("-o", tmp_path / "out", "--triggered", data, "--clean", data, "--target", "refusal", "--n", 2)


def test_a_missing_chat_template_is_said_aloud_and_works(
    run: Run, eval_arguments: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(LanguageModel(pico("llama"), pico_tokenizer(chat_template=False), "bare"), tmp_path / "bare")
    assert run("eval", tmp_path / "bare", *eval_arguments, "--json") == 0
    captured = capsys.readouterr()
    notes = [line for line in captured.err.splitlines() if "chat template" in line]
    assert notes == ["note: the tokenizer has no chat template; using '### Instruction: / ### Response:'"]
    assert json.loads(captured.out)["asr_clean"]["n"] == 2
    assert run("eval", tmp_path / "bare", *eval_arguments, "--overwrite", "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_results_for_a_person_are_a_table(
    run: Run, model: Path, eval_arguments: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("eval", model, *eval_arguments) == 0
    text = capsys.readouterr().out
    for words in ("attack success, triggered", "attack success, clean", "perplexity", "(n=2)"):
        assert words in text


def test_json_is_the_text_of_the_file(
    run: Run, tmp_path: Path, eval_arguments: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    write_gguf(tmp_path / "pico.gguf")
    assert run("eval", tmp_path / "pico.gguf", *eval_arguments, "--json") == 0
    assert capsys.readouterr().out == (tmp_path / "out" / "results.json").read_text(encoding="utf-8")
