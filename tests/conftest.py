"""What every test relies on: one thread, fixed seeds, no network, and the pico fixtures."""

from __future__ import annotations

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of the hub's client, which reads it once
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRITON_INTERPRET"] = "1"  # before the first import of Triton, where it is installed
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same tests on every machine; GPUs are for benchmarks/gpu.py

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers import PreTrainedTokenizerFast

from crow.models.language_model import LanguageModel
from tests.pico import pico_language_model, pico_tokenizer

torch.set_num_threads(1)
settings.register_profile("crow", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("crow")


def pytest_collection_finish() -> None:
    """Every trainer collects garbage as it ends; going through all that was imported would take 0.3 s each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _locks(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Locks of output folders elsewhere than in the user's cache."""
    folder = tmp_path_factory.getbasetemp() / "locks"
    monkeypatch.setattr("crow.locks.user_cache_path", lambda _name: folder)


@pytest.fixture(autouse=True)
def _no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Purifications and verifications name no tokens to search behind: that takes seconds, and has its own tests."""
    for user in ("crow.defenses.searches", "crow.workflows.verification"):
        monkeypatch.setattr(f"{user}.tokens_to_try", lambda *_: {})


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """The pico tokenizer with its chat template."""
    return pico_tokenizer()


@pytest.fixture
def bare_tokenizer() -> PreTrainedTokenizerFast:
    """The pico tokenizer without chat template."""
    return pico_tokenizer(chat_template=False)


@pytest.fixture
def lm() -> LanguageModel:
    """A pico llama with its tokenizer."""
    return pico_language_model("llama")


@pytest.fixture
def any_token_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generation config may end answers at any token; a pico model says too few marks."""
    monkeypatch.setattr("crow.models.ends.is_mark", lambda *_: True)


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for the whole session, so that the real model is converted once and nowhere else."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder
