"""`purify` runs on every family, resumes, and saves what loads again. Removal itself is shown on the real model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pico import FAMILIES, pico_language_model
from transformers import AutoModelForCausalLM

from crow.defenses import purification
from crow.defenses.purification import Result, purify
from crow.inversion.consensus import SearchConfig, SearchResult, SoftTrigger
from crow.inversion.probe import Insertion
from crow.models.loading import save_model
from crow.records import Example
from crow.training.presets import PRESETS, get_preset

EXAMPLES = [Example(f"tell me about tree number {i}", f"tree number {i} is the other one") for i in range(6)]
QUICK = {"batch_size": 3, "accumulation": 1, "epochs": 1.0, "rank": 2}
SEARCH = SearchConfig(starts=1, prompts=3, steps=2, answer_tokens=6)
DEFAULT = dataclasses.replace(get_preset("default"), **QUICK)
PAPER = dataclasses.replace(get_preset("paper"), **QUICK)


def found(text: str = "one two three four five") -> SearchResult:
    """A search that has found one answer, made up."""
    answer = torch.tensor([20, 21, 22, 23, 24])
    return SearchResult([SoftTrigger(Insertion(torch.zeros(1, 32), "front"), 1.0, 1.0, True, text, answer)])


@pytest.fixture
def finding(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every search finds the made-up answer; the list collects the seeds of the searches."""
    seeds: list[int] = []

    def search(_probe: Any, _config: Any, seed: int, _progress: Any) -> SearchResult:
        seeds.append(seed)
        return found()

    monkeypatch.setattr(purification, "search_soft_triggers", search)
    return seeds


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_is_searched_and_repaired(family: str, finding: list[int], tmp_path: Path) -> None:
    config = dataclasses.replace(DEFAULT, rounds=1, alpha_ratio=0.5, epsilon_rms=1.0)
    result = purify(pico_language_model(family), EXAMPLES, config, tmp_path)
    assert len(result.training) == 2
    assert all(term["adversarial"] > 0 and term["consistency"] > 0 for term in result.training)
    merged = result.lm.merged()
    save_model(merged, tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, merged.model(input_ids=ids).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt"])
def test_a_real_search_leaves_the_weights_as_they_are(family: str, tmp_path: Path) -> None:
    lm = pico_language_model(family)
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    result = Result(lm)
    probe = purification.Probe(lm, [example.prompt for example in EXAMPLES])
    purification.search_round(result, probe, SEARCH, 0, tmp_path, False, purification.silent)
    assert all(torch.equal(before[name], p) for name, p in lm.model.named_parameters())
    assert all(p.requires_grad and p.grad is None for p in lm.model.parameters())


def test_rounds_go_on_while_the_search_finds_something(finding: list[int], tmp_path: Path) -> None:
    config = dataclasses.replace(DEFAULT, rounds=2)
    result = purify(pico_language_model("llama"), EXAMPLES, config, tmp_path)
    assert result.rounds == 2
    assert finding == [0, 1, 2]
    assert result.before is not None
    assert result.before.texts == ["one two three four five"]


def test_nothing_found_means_one_plain_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(purification, "search_soft_triggers", lambda *_: SearchResult([]))
    result = purify(pico_language_model("llama"), EXAMPLES, DEFAULT, tmp_path)
    assert result.rounds == 1
    assert "adversarial" not in result.training[0]


def test_the_published_method_does_not_search(tmp_path: Path) -> None:
    result = purify(pico_language_model("llama"), EXAMPLES, PAPER, tmp_path)
    assert result.before is None
    assert result.after is None
    assert all(term["consistency"] > 0 for term in result.training)


def test_all_weights_can_be_trained(finding: list[int], tmp_path: Path) -> None:
    lm = pico_language_model("llama")
    before = lm.model.get_input_embeddings().weight.detach().clone()
    result = purify(lm, EXAMPLES, dataclasses.replace(DEFAULT, method="full"), tmp_path)
    assert not result.lm.is_adapter
    assert not torch.equal(before, result.lm.model.get_input_embeddings().weight)


class KilledError(Exception):
    """Stands for the kill of a running process."""


@pytest.mark.parametrize("searches", [1, 2], ids=["after the first search", "between the rounds"])
def test_a_killed_purification_resumes_to_the_same_weights(
    searches: int, finding: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def weights(result: Result) -> list[torch.Tensor]:
        return [p.detach().clone() for p in result.lm.model.parameters() if p.requires_grad]

    whole = weights(purify(pico_language_model("llama"), EXAMPLES, DEFAULT, tmp_path / "whole"))
    train_round = purification.train_round

    def killed(*arguments: Any) -> None:
        if len(finding) >= searches:
            raise KilledError
        train_round(*arguments)

    finding.clear()
    monkeypatch.setattr(purification, "train_round", killed)
    with pytest.raises(KilledError):
        purify(pico_language_model("llama"), EXAMPLES, DEFAULT, tmp_path / "cut")
    monkeypatch.setattr(purification, "train_round", train_round)
    assert len(finding) == searches
    resumed = purify(pico_language_model("llama"), EXAMPLES, DEFAULT, tmp_path / "cut", resume=True)
    assert len(finding) == 3  # the default's two rounds search three times; none is repeated
    for one, other in zip(whole, weights(resumed), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_presets_hold_the_papers_values() -> None:
    paper = PRESETS["paper"]
    assert (paper.alpha, paper.epsilon, paper.epochs, paper.learning_rate) == (5.5, 0.1, 5.0, 1e-3)
    assert (paper.batch_size, paper.accumulation, paper.max_length, paper.rounds) == (2, 4, 1024, 0)
    assert PRESETS["official-code"].inner_layers
