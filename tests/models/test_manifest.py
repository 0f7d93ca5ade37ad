from __future__ import annotations

import json
import re

import torch
import transformers

from crow.models.language_model import LanguageModel
from crow.models.manifest import hash_examples, installed_versions, manifest
from crow.records import Example, dump_json
from crow.training.presets import get_preset

CLEAN = [Example("a secret prompt", "a secret answer"), Example("b", "c", history=(("system", "hush"),))]


def test_it_names_model_data_settings_versions_and_hardware(lm: LanguageModel) -> None:
    lm.provenance = {"reference": "pico", "weights": {"model.safetensors": "0" * 64}}
    record = json.loads(dump_json(manifest(lm, {"clean": CLEAN}, get_preset("paper"), seed=7)))
    assert record["seed"] == 7
    assert record["model"] == lm.provenance
    assert record["template"] == lm.template_hash()
    assert record["config"]["alpha"] == 5.5
    assert record["data"] == {"clean": {"n": 2, "sha256": hash_examples(CLEAN)}}
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["transformers"] == transformers.__version__
    assert record["hardware"]["device"] == "cpu"
    assert record["hardware"]["cpus"] >= 1
    assert record["hardware"]["threads"] >= 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["created"])


def test_it_holds_no_text_of_the_data(lm: LanguageModel) -> None:
    text = dump_json(manifest(lm, {"clean": CLEAN}, {}, seed=0))
    assert "secret" not in text
    assert "hush" not in text


def test_the_hash_tells_examples_apart() -> None:
    others = [
        CLEAN[:1],
        CLEAN[::-1],
        [CLEAN[0], Example("b", "c")],
        [Example("a secret prompt", "an answer"), CLEAN[1]],
        [Example("a secret prompta", " secret answer"), CLEAN[1]],
    ]
    hashes = {hash_examples(examples) for examples in [CLEAN, *others]}
    assert len(hashes) == 6
    assert hash_examples(tuple(CLEAN)) == hash_examples(CLEAN)
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in hashes)


def test_packages_that_are_not_installed_are_left_out(monkeypatch) -> None:
    monkeypatch.setattr("crow.models.manifest.PACKAGES", ("torch", "no-such-package-at-all"))
    assert installed_versions().keys() == {"python", "torch"}
