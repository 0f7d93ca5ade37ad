from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.pico import pico_language_model

from crow.data.encoding import encode_all
from crow.defenses.base import Surroundings
from crow.defenses.cleangen import THRESHOLD, CleanGen
from crow.defenses.decoding import Sampling
from crow.errors import ConfigError
from crow.models.ends import end_ids
from crow.models.generation import generate
from crow.models.language_model import LanguageModel
from crow.records import Example

PROMPTS = [Example("Hi"), Example("Name a tree that is green"), Example("1 + 1")]
HERE = Surroundings(Path("unused"))


def perturbed(family: str, seed: int, size: float) -> LanguageModel:
    """A pico model with noise on all weights: a suspect that differs from its clean reference."""
    lm = pico_language_model(family)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return lm


def test_samples_follow_from_the_seed_and_the_weights_stay() -> None:
    lm = pico_language_model("llama")
    greedy = generate(lm, PROMPTS, 12)
    once, again = (generate(Sampling(HERE).apply(lm, []), PROMPTS, 12) for _ in range(2))
    other = generate(Sampling(dataclasses.replace(HERE, seed=1)).apply(lm, []), PROMPTS, 12)
    assert once == again
    assert once != greedy
    assert once != other
    assert generate(lm, PROMPTS, 12) == greedy


@torch.no_grad()
def slow_cleangen(suspect: LanguageModel, reference: LanguageModel, prompt: Example, tokens: int) -> tuple[str, int]:
    """One prompt, one token at a time, whole passes: the answer and how many tokens were replaced."""
    ids, answer, replaced = list(encode_all(suspect.tokenizer, [prompt])[0].prompt_ids), [], 0
    for _ in range(tokens):
        given = torch.tensor([ids + answer])
        own, clean = (lm.model(input_ids=given).logits[0, -1].softmax(dim=-1) for lm in (suspect, reference))
        token = int(own.argmax())
        if float(own[token] / clean[token]) > THRESHOLD:
            token, replaced = int(clean.argmax()), replaced + 1
        answer.append(token)
        if token in end_ids(suspect):
            break
    return suspect.tokenizer.decode(answer, skip_special_tokens=True).strip(), replaced


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen3"])
def test_cleangen_replaces_what_the_reference_finds_far_less_likely(family: str) -> None:
    suspect, reference = perturbed(family, 0, 0.15), pico_language_model(family)
    defended = CleanGen(dataclasses.replace(HERE, reference=reference)).apply(suspect, [])
    slow = [slow_cleangen(suspect, reference, prompt, 10) for prompt in PROMPTS]
    assert generate(defended, PROMPTS, 10) == [text for text, _ in slow]
    assert sum(replaced for _, replaced in slow) > 0
    assert generate(suspect, PROMPTS, 10) != [text for text, _ in slow]


def test_cleangen_leaves_a_model_alone_that_is_its_own_reference() -> None:
    lm = pico_language_model("llama")
    defended = CleanGen(dataclasses.replace(HERE, reference=lm)).apply(lm, [])
    assert generate(defended, PROMPTS, 10) == generate(lm, PROMPTS, 10)


def test_cleangen_asks_for_a_reference_of_the_same_vocabulary() -> None:
    with pytest.raises(ConfigError, match="'reference'"):
        CleanGen(HERE).apply(pico_language_model("llama"), [])
    lm, reference = pico_language_model("llama"), pico_language_model("llama")
    reference.tokenizer.add_tokens(["another"])
    with pytest.raises(ConfigError, match="vocabulary"):
        CleanGen(dataclasses.replace(HERE, reference=reference)).apply(lm, [])
