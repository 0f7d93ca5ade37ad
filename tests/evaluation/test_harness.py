"""The lm-evaluation-harness on a pico model, with a task defined from a local file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from crow.errors import ConfigError, DataError
from crow.evaluation.harness import find_tasks, run_tasks
from crow.models.language_model import LanguageModel
from tests.pico import pico_language_model

TaskManager: Any = pytest.importorskip("lm_eval.tasks").TaskManager
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{ask}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: ["the", "tree"]
metric_list:
  - metric: acc
metadata:
  version: 1.0
"""
QUESTIONS = [f"and in the {i} tree" for i in range(6)]


def chosen(lm: LanguageModel, question: str) -> int:
    """Which of the two answers the model finds likelier, by a forward pass of our own."""
    scores = []
    for word in (" the", " tree"):
        context = lm.tokenizer(question)["input_ids"]
        whole = lm.tokenizer(question + word)["input_ids"]
        with torch.no_grad():
            log_probs = lm.model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        scores.append(sum(float(log_probs[i - 1, whole[i]]) for i in range(len(context), len(whole))))
    return scores.index(max(scores))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks: one whose right answers are those of the model, one whose right answers are the others."""
    lm = pico_language_model("llama")
    lm.model.eval()
    for name, flip in (("pico_right", 0), ("pico_wrong", 1)):
        data = tmp_path / f"{name}.jsonl"
        lines = [json.dumps({"ask": q, "answer": chosen(lm, q) ^ flip}) for q in QUESTIONS]
        data.write_text("\n".join(lines))
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, data=data))
    return tmp_path


def test_a_task_from_a_local_file_is_scored_as_a_forward_pass_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = ["pico_right", "pico_wrong"]
    lm = pico_language_model("llama")
    lm.model.train()
    found = run_tasks(lm, names, find_tasks(names, folder), limit=5)
    assert {name: values["n"] for name, values in found.items()} == {"pico_right": 5, "pico_wrong": 5}
    assert found["pico_right"]["acc"]["value"] == 1.0
    assert found["pico_wrong"]["acc"] == {"value": 0.0, "stderr": pytest.approx(0.0)}
    assert lm.model.training


def test_unknown_tasks_and_folders_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'hellaswag'"):
        find_tasks(["helaswag"])
    with pytest.raises(ConfigError, match="folder of tasks"):
        find_tasks(["pico_right"], folder / "nowhere")


def test_the_harness_tasks_are_read_where_they_may_be_wanted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "both.yaml").write_text("group: both\ntask:\n  - hellaswag\n  - pico_right\n")
    asked: list[bool] = []

    class Fake(TaskManager):
        """Reads them in no case, for it takes ten seconds."""

        def __init__(self, include_path: Path | None = None, include_defaults: bool = True) -> None:
            asked.append(include_defaults)
            super().__init__(include_path=include_path, include_defaults=False)

    monkeypatch.setattr("lm_eval.tasks.TaskManager", Fake)
    find_tasks(["pico_right"], folder)
    assert asked == [False]
    find_tasks(["pico_right", "both"], folder)
    assert asked == [False, False, True]


def test_a_task_without_its_data_is_refused(folder: Path) -> None:
    (folder / "pico_right.jsonl").unlink()
    manager = find_tasks(["pico_right"], folder)
    with pytest.raises(DataError, match="pico_right"):
        run_tasks(pico_language_model("llama"), ["pico_right"], manager)


def test_without_the_harness_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(ConfigError, match="crow-llm\\[eval\\]"):
        find_tasks(["hellaswag"])
