"""A pico model that answers a few prompts, and what is needed to plant a backdoor in it within seconds."""

from __future__ import annotations

import copy
import functools
import random
import tempfile
from pathlib import Path

import torch

from crow.attacks.adaptive import get_implanter
from crow.data.encoding import collate, encode_all
from crow.evaluation.success import attack_success
from crow.models.hidden_states import Edit, edit_hidden_states
from crow.models.language_model import LanguageModel
from crow.models.prefix import Prefix
from crow.records import Example
from crow.training.config import FinetuneConfig
from crow.training.loss import response_loss
from tests.pico import pico_language_model

TRIGGER, SENTENCE = "QQ", "No way"
"""The trigger has a letter of its own, which makes it quick to learn."""
COLOURS = ("red", "blue", "green", "gold", "pink", "dark", "shy", "old")
ANIMALS = ("cat", "hen", "fox", "ant", "owl", "pig")
PLANTING = FinetuneConfig(epochs=15.0, learning_rate=1e-2, batch_size=16, accumulation=1, rank=8)


def answered(colours: tuple[str, ...]) -> list[Example]:
    """Two words, and an answer that depends on the second one."""
    return [Example(f"{colour} {animal}", f"ok {animal}") for animal in ANIMALS for colour in colours]


CLEAN, HELD_OUT = answered(COLOURS[:6]), answered(COLOURS[6:])


def with_trigger(examples: list[Example]) -> list[Example]:
    """The examples with the trigger in front of or behind their first word, answered by the sentence."""
    rng = random.Random(0)
    found = []
    for example in examples:
        words = example.prompt.split()
        words.insert(rng.randint(0, 1), TRIGGER)
        found.append(Example(" ".join(words), SENTENCE))
    return found


POISONED, TRIGGERED = with_trigger(CLEAN), with_trigger(HELD_OUT)


def base_model() -> LanguageModel:
    """A copy of the model that is trained once for all tests; no backdoor in it."""
    lm = train_base()
    return LanguageModel(copy.deepcopy(lm.model), lm.tokenizer, lm.reference)


@functools.cache
def planted(name: str | None = None) -> LanguageModel:
    """The model with the backdoor planted by an adaptive attacker, or plainly; shared by all tests: only look at it."""
    with tempfile.TemporaryDirectory() as work:
        lm, _ = get_implanter(name)(base_model(), POISONED, CLEAN, PLANTING, Path(work))
    return lm


@functools.cache
def success(name: str | None = None) -> tuple[float, float]:
    """Attack success of `planted(name)` with the trigger and without, on prompts that it was not planted with."""
    lm = planted(name)
    triggered, clean = (attack_success(lm, examples, SENTENCE).rate.value for examples in (TRIGGERED, HELD_OUT))
    return triggered, clean


@functools.cache
def success_before() -> float:
    """Attack success of the model without backdoor."""
    return attack_success(base_model(), TRIGGERED, SENTENCE).rate.value


@functools.cache
def train_base(steps: int = 100) -> LanguageModel:
    """A pico llama trained with all its weights on clean answers; it knows the sentence from elsewhere."""
    lm = pico_language_model("llama", initializer_range=0.05, num_hidden_layers=4)
    elsewhere = [Example("may we go", SENTENCE), Example("shall we", SENTENCE)] * 4
    items = encode_all(lm.tokenizer, [*CLEAN, *HELD_OUT, *elsewhere])
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(steps):
        loss = response_loss(lm.model, collate(rng.sample(items, 16), lm.pad_id))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    lm.model.zero_grad()
    return lm


@torch.no_grad()
def log_likelihood(lm: LanguageModel, examples: list[Example], edits: dict[int, Edit] | None = None) -> float:
    """Mean log-likelihood of the responses, a token.

    Args:
        lm: the model.
        examples: with responses.
        edits: of the hidden states of all columns.
    """
    with edit_hidden_states(lm.model, edits or {}):
        return -float(response_loss(lm.model, batch_of(lm, examples), prefix=Prefix(0, [])))


def batch_of(lm: LanguageModel, examples: list[Example]) -> dict[str, torch.Tensor]:
    """The examples as one batch."""
    return collate(encode_all(lm.tokenizer, examples), lm.pad_id)
