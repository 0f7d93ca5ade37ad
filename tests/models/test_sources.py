from __future__ import annotations

import hashlib
import logging
import struct
from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

from crow.errors import AdapterError, ConfigError, ModelError
from crow.models import sources
from crow.models.sources import hash_weights, is_hub_id, locate, looks_like_path, one_line, plain_errors, portable


@pytest.mark.parametrize(
    ("reference", "path", "hub"),
    [
        ("owner/name", False, True),
        ("./owner/name", True, False),
        ("/owner/name", True, False),
        ("~/name", True, True),
        ("a/b/c", True, False),
        ("model.gguf", True, False),
        ("name", False, False),
        ("", False, False),
        ("owner/", False, False),
    ],
)
def test_paths_and_hub_ids_are_told_apart(reference, path, hub):
    assert looks_like_path(reference) is path
    assert is_hub_id(reference) is hub


@pytest.mark.parametrize("reference", ["/nowhere/model", "./nowhere", "nowhere.gguf", "a/b/c"])
def test_a_missing_path_is_an_error_that_names_it(reference):
    with pytest.raises(ModelError, match=f"got {reference}, which does not exist"):
        locate(reference)


def test_an_unknown_alias_is_answered_with_the_closest_one():
    with pytest.raises(ConfigError, match="unknown model 'smolm2-135'; did you mean 'smollm2-135m'"):
        locate("smolm2-135")


def test_a_hub_id_that_cannot_be_had_is_an_error_that_names_it():
    """The tests run offline."""
    with pytest.raises(ModelError, match="no path nobody/nothing here, and the hub does not give it"):
        locate("nobody/nothing")


def test_a_local_folder_that_looks_like_a_hub_id_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert locate("owner/name") == Path("owner/name")
    assert portable("owner/name") == str(tmp_path / "owner" / "name")
    assert portable("other/name") == "other/name"
    (tmp_path / "smollm2-135m").mkdir()
    assert portable("smollm2-135m") == "smollm2-135m"


def test_no_pickle_and_no_code_is_downloaded(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(sources, "snapshot_download", lambda name, **options: calls.append((name, options)) or tmp_path)
    assert locate("owner/name") == tmp_path
    [(name, options)] = calls
    assert name == "owner/name"
    files = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "chat_template.jinja", "merges.txt"]
    bad = ["pytorch_model.bin", "modeling.py", "training_args.bin", "x.pt", "x.pkl"]
    assert [any(Path(file).match(p) for p in options["allow_patterns"]) for file in files] == [True] * len(files)
    assert [any(Path(file).match(p) for p in options["allow_patterns"]) for file in bad] == [False] * len(bad)


def test_weights_are_hashed(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"adapter")
    (tmp_path / "config.json").write_text("{}")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert hash_weights(tmp_path) == {"model.safetensors": digest}
    assert hash_weights(tmp_path / "model.safetensors") == {"model.safetensors": digest}


@pytest.mark.parametrize(
    "error", [struct.error("cut\n  off"), Exception("cut off"), IndexError("cut off"), OSError("cut off")]
)
def test_any_error_of_a_library_becomes_one_line(error):
    with pytest.raises(ModelError, match="cannot load the model REF: cut off"), plain_errors("REF"):
        raise error


@pytest.mark.parametrize("error", [AdapterError("ours"), MemoryError(), torch.OutOfMemoryError(), KeyboardInterrupt()])
def test_our_own_errors_and_a_lack_of_memory_pass_through(error):
    with pytest.raises(type(error)) as caught, plain_errors("REF"):
        raise error
    assert caught.value is error


def test_the_libraries_are_quiet_meanwhile_and_as_before_afterwards():
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.enable_progress_bar()
    meanwhile = []

    def load() -> None:
        meanwhile.extend([transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()])
        raise ValueError

    with pytest.raises(ModelError), plain_errors("REF"):
        load()
    assert meanwhile == [logging.ERROR, False]
    assert transformers_logging.get_verbosity() == verbosity
    assert transformers_logging.is_progress_bar_enabled()


def test_long_messages_are_cut_and_empty_ones_named():
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("a\n\tb")) == "a b"
    assert len(one_line(ValueError("x" * 1000))) == 300
