"""vLLM behind `generate`. `FakeVllm` stands for it: the same calls, answered by transformers; no GPU, no vLLM here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from crow.errors import ConfigError
from crow.models import engines
from crow.models.decoding import Decoding
from crow.models.ends import end_ids
from crow.models.engines import with_engine
from crow.models.generation import generate
from crow.models.language_model import LanguageModel
from crow.records import Example
from crow.training.adapter import make_trainable
from crow.training.presets import get_preset
from tests.pico import pico_language_model

EXAMPLES = [Example("Hi"), Example("Name a tree in the wood"), Example("1 + 1")]


class FakeVllm:
    """Of vLLM's `LLM`, what `VllmEngine` uses."""

    def __init__(self, model: str, tokenizer: str, **options: Any) -> None:
        assert options["trust_remote_code"] is False
        assert options["load_format"] == "safetensors"
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, options["dtype"]))
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)

    def generate(self, prompts: list[dict[str, list[int]]], sampling: SimpleNamespace, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        return [SimpleNamespace(outputs=[SimpleNamespace(text=self.answer(p, sampling))]) for p in prompts]

    def answer(self, prompt: dict[str, list[int]], sampling: SimpleNamespace) -> str:
        ids = torch.tensor([prompt["prompt_token_ids"]])
        for _ in range(sampling.max_tokens):
            following = self.model(input_ids=ids).logits[0, -1].argmax()
            if int(following) in sampling.stop_token_ids:
                break
            ids = torch.cat([ids, following[None, None]], dim=1)
        said = ids[0, len(prompt["prompt_token_ids"]) :]
        return self.tokenizer.decode(said, skip_special_tokens=True)


@pytest.fixture
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=FakeVllm, SamplingParams=SimpleNamespace))
    monkeypatch.setattr(engines, "find_spec", lambda _name: True)


@pytest.fixture
def suspect(lm: LanguageModel) -> LanguageModel:
    """A pico model with an adapter that changes its answers."""
    adapted = make_trainable(lm, get_preset("paper"))
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    return adapted


@pytest.mark.usefixtures("_vllm")
def test_an_engine_gives_the_answers_of_the_merged_model(suspect: LanguageModel, tmp_path: Path) -> None:
    expected = generate(suspect, EXAMPLES, max_new_tokens=8)
    assert expected != generate(pico_language_model("llama"), EXAMPLES, max_new_tokens=8)
    done: list[int] = []
    lm = with_engine(suspect, "vllm", tmp_path, seed=0)
    assert generate(lm, EXAMPLES, max_new_tokens=8, progress=done.append) == expected
    assert done == [3]


@pytest.mark.usefixtures("_vllm")
def test_the_engine_is_told_how_to_decode(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[SimpleNamespace] = []

    def answer(_self: FakeVllm, _prompt: dict[str, list[int]], sampling: SimpleNamespace) -> str:
        told.append(sampling)
        return " said "

    monkeypatch.setattr(FakeVllm, "answer", answer)
    lm = with_engine(lm, "vllm", tmp_path, seed=3)
    assert generate(lm, EXAMPLES[:1], max_new_tokens=5) == ["said"]
    lm.decoding = Decoding(temperature=0.7, top_p=0.9)
    generate(lm, EXAMPLES[:1])
    assert [(s.temperature, s.top_p, s.max_tokens) for s in told] == [(0.0, 1.0, 5), (0.7, 0.9, 64)]
    assert told[0].stop_token_ids == end_ids(lm)


@pytest.mark.usefixtures("_vllm")
def test_a_defense_with_a_hand_in_every_token_decodes_itself(lm: LanguageModel, tmp_path: Path) -> None:
    lm = with_engine(lm, "vllm", tmp_path, seed=0)
    asked: list[int] = []

    def processor(mask: torch.Tensor) -> Any:
        asked.append(len(mask))
        return lambda _ids, scores: scores

    lm.decoding = Decoding(processor=processor)
    generate(lm, EXAMPLES, max_new_tokens=2)
    assert sum(asked) == len(EXAMPLES)


def test_without_vllm_it_is_said_how_to_get_it(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="pip install vllm"):
        with_engine(lm, "vllm", tmp_path, seed=0)
    assert with_engine(lm, "transformers", tmp_path, seed=0) is lm
