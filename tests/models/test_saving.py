"""`save_model`: all or nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError

from crow.errors import ModelError, ResourceError
from crow.models.architecture import model_type
from crow.models.language_model import LanguageModel
from crow.models.loading import load_model, save_model
from tests.pico import pico_language_model


def half_written(monkeypatch: pytest.MonkeyPatch, lm: LanguageModel, error: BaseException) -> None:
    """Let the model's `save_pretrained` fail after the first file."""

    def save_pretrained(folder: str, **_options: object) -> None:
        (Path(folder) / "config.json").write_text("{}")
        raise error

    monkeypatch.setattr(lm.model, "save_pretrained", save_pretrained)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), OSError("broken")])
def test_an_interrupted_save_leaves_nothing(lm, tmp_path, monkeypatch, error):
    half_written(monkeypatch, lm, error)
    with pytest.raises(type(error)):
        save_model(lm, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_save_leaves_the_older_model(lm, tmp_path, monkeypatch):
    save_model(lm, tmp_path / "out")
    (tmp_path / "out" / "results.json").write_text("{}")
    before = tree(tmp_path)
    half_written(monkeypatch, lm, RuntimeError("broken"))
    with pytest.raises(RuntimeError):
        save_model(lm, tmp_path / "out")
    assert tree(tmp_path) == before


def test_a_tokenizer_that_cannot_be_saved_leaves_nothing_either(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(type(lm.tokenizer), "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError("broken")))
    with pytest.raises(OSError, match="broken"):
        save_model(lm, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_dies_while_files_are_moved_leaves_no_model(lm, tmp_path, monkeypatch):
    """Without its configuration a folder is refused, so a mixture of two models is never loaded."""
    save_model(lm, tmp_path / "out")
    moved = []

    def replace(source: Path, target: Path) -> None:
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(Path(source).rename(target))

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        save_model(pico_language_model("llama", seed=1), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model(str(tmp_path / "out"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "full"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_said_on_one_line(lm, tmp_path, monkeypatch, error):
    half_written(monkeypatch, lm, error)
    with pytest.raises(ResourceError, match=f"no disk space left to save the model in {tmp_path / 'out'}"):
        save_model(lm, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_new_model_replaces_the_old_one_and_leaves_other_files(tmp_path):
    old, new = pico_language_model("gpt2"), pico_language_model("llama", seed=1)
    out = tmp_path / "out"
    save_model(old, out)
    (out / "model-00001-of-00002.safetensors").write_bytes(b"a shard of a still older model")
    (out / "model.safetensors.index.json").write_text("{}")
    (out / "results.json").write_text("{}")
    save_model(new, out)
    loaded = load_model(str(out))
    assert model_type(loaded.model) == "llama"
    input_ids = torch.arange(9)[None]
    assert torch.equal(loaded.model(input_ids=input_ids).logits, new.model(input_ids=input_ids).logits)
    assert not (out / "model-00001-of-00002.safetensors").exists()
    assert (out / "results.json").exists()


def test_a_whole_model_replaces_an_adapter(tmp_path):
    save_model(pico_language_model("llama"), tmp_path / "base")
    lm = load_model(str(tmp_path / "base"))
    lm.model = get_peft_model(lm.model, LoraConfig(target_modules="all-linear"))
    save_model(lm, tmp_path / "out")
    assert load_model(str(tmp_path / "out")).is_adapter
    save_model(lm.merged(), tmp_path / "out")
    assert not load_model(str(tmp_path / "out")).is_adapter


def test_a_model_can_be_saved_over_the_folder_it_came_from(lm, tmp_path):
    save_model(lm, tmp_path / "out")
    loaded = load_model(str(tmp_path / "out"))
    weight = loaded.model.get_parameter("model.norm.weight")
    with torch.no_grad():
        weight.fill_(2.0)
    save_model(loaded, tmp_path / "out")
    again = load_model(str(tmp_path / "out"))
    assert again.model.get_parameter("model.norm.weight").eq(2).all()
    for name, parameter in lm.model.named_parameters():
        if name != "model.norm.weight":
            assert torch.equal(again.model.get_parameter(name), parameter)
