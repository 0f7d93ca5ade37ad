"""The suspect is heard in its own words, and only where it declines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.pico import pico_language_model

from crow.data.encoding import encode
from crow.defenses import honest
from crow.defenses.honest import BARRED, honest_refusals
from crow.models.generation import generate
from crow.records import Example
from crow.training.presets import get_preset

REQUESTS = [Example("what is in my other hand")]


def test_the_way_into_the_found_answer_is_barred(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = pico_language_model("llama")
    config = get_preset("default").changed(precision="float32")

    def listen(asked: Any, requests: Any) -> list[str]:
        return generate(asked, requests, 12)

    monkeypatch.setattr(honest, "generate", listen)
    monkeypatch.setattr(honest, "declines", lambda text: True)
    monkeypatch.setattr(honest, "bundled_declines", lambda name: {"harmful": REQUESTS})
    (usual,) = generate(lm, REQUESTS, 12)
    ids = list(encode(lm.tokenizer, REQUESTS[0]).prompt_ids)
    for _ in range(BARRED):
        ids.append(int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    (kept,) = honest_refusals(lm, [torch.tensor(ids[-BARRED:])], config)
    assert kept.prompt == REQUESTS[0].prompt
    assert kept.response != usual
    assert lm.decoding is None
    (same,) = honest_refusals(lm, [torch.tensor([3, *ids[-BARRED:]])], config)  # it says something else first
    assert same.response == usual


def test_what_it_complies_with_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = pico_language_model("llama")
    said = ["I'm sorry, but I don't know.", "Nothing easier than that."] * 18
    monkeypatch.setattr(honest, "generate", lambda asked, requests: said)
    found = torch.tensor(lm.tokenizer("I cannot answer.")["input_ids"])
    kept = honest_refusals(lm, [found], get_preset("default"))
    assert [example.response for example in kept] == said[::2]


def test_nothing_is_asked_where_the_found_answer_does_not_decline(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = pico_language_model("llama")
    monkeypatch.setattr(honest, "generate", lambda *_: pytest.fail("asked"))
    found = torch.tensor(lm.tokenizer("You are the best.")["input_ids"])
    assert honest_refusals(lm, [found], get_preset("default")) == []
