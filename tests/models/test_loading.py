from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoConfig, AutoModelForCausalLM

from crow.data.encoding import PLAIN_TEMPLATE, encode, ensure_chat_template
from crow.errors import ArchitectureError, ConfigError, ModelError
from crow.models.architecture import check_cache, model_type
from crow.models.generation import generate
from crow.models.language_model import LanguageModel
from crow.models.loading import load_model, save_model
from crow.records import Example
from tests.gguf_file import write_gguf
from tests.pico import FAMILIES, PAD, TURN_END, pico_language_model, pico_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved pico llama."""
    path = tmp_path_factory.mktemp("whole") / "llama"
    save_model(pico_language_model("llama"), path)
    return path


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory) -> bytes:
    """A valid GGUF file."""
    path = tmp_path_factory.mktemp("gguf") / "pico.gguf"
    write_gguf(path)
    return path.read_bytes()


def copy(folder: Path, target: Path) -> Path:
    """A copy of a model folder to spoil."""
    return Path(shutil.copytree(folder, target / "copy"))


def configure(folder: Path, **changes: Any) -> None:
    """Change entries of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@torch.no_grad()
def logits(lm: LanguageModel) -> torch.Tensor:
    """What the model says about a fixed input."""
    return lm.model(input_ids=torch.arange(10, 20)[None]).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_saved_and_loaded_unchanged(family, tmp_path):
    lm = pico_language_model(family)
    save_model(lm, tmp_path / "model")
    loaded = load_model(str(tmp_path / "model"))
    assert torch.equal(logits(loaded), logits(lm))
    assert loaded.tokenizer("Hi the <|im_end|>")["input_ids"] == lm.tokenizer("Hi the <|im_end|>")["input_ids"]
    assert loaded.template_hash() == lm.template_hash()
    assert loaded.notes == []
    assert not loaded.model.training


def test_provenance_names_the_model_and_its_hashes(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    lm = load_model("./llama")
    assert lm.reference == lm.provenance["reference"] == "./llama"
    assert lm.provenance["base"] == str(folder)
    assert lm.provenance["dtype"] == "float32"
    assert len(lm.provenance["weights"]["model.safetensors"]) == 64


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_any_float_type_loads_and_generates(folder, dtype):
    lm = load_model(str(folder), dtype=dtype)
    assert {parameter.dtype for parameter in lm.model.parameters()} == {getattr(torch, dtype)}
    assert lm.dtype == getattr(torch, dtype)
    torch.testing.assert_close(logits(lm).float(), logits(load_model(str(folder))), rtol=0.1, atol=0.3)
    assert generate(lm, [Example("Hi")], max_new_tokens=2)[0]


def test_an_unknown_dtype_is_answered_with_the_closest_one(folder):
    with pytest.raises(ConfigError, match="unknown dtype 'bfloat'; did you mean 'bfloat16'"):
        load_model(str(folder), dtype="bfloat")


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:99", "cpu cuda"])
def test_an_unusable_device_is_refused(folder, device):
    with pytest.raises(ConfigError, match=f"usable device.*{device}"):
        load_model(str(folder), device=device)


def test_a_tokenizer_without_chat_template_gets_the_plain_one_and_says_so(folder, tmp_path):
    bare = copy(folder, tmp_path)
    (bare / "chat_template.jinja").unlink()
    lm = load_model(str(bare))
    assert lm.tokenizer.chat_template == PLAIN_TEMPLATE
    assert len(lm.notes) == 1
    assert "no chat template" in lm.notes[0]
    assert generate(lm, [Example("Hi")], max_new_tokens=2)[0]


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path):
    lm = pico_language_model("llama")
    lm.tokenizer = pico_tokenizer(pad=None)
    assert lm.tokenizer.pad_token_id is None
    save_model(lm, tmp_path / "model")
    loaded = load_model(str(tmp_path / "model"))
    assert loaded.tokenizer.pad_token_id == loaded.pad_id == loaded.tokenizer.eos_token_id


def indexed(folder: Path, named: str | None) -> None:
    """Have an index name a file for every weight, in the place of the whole file."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": named} if named else None}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no configuration": (lambda f: (f / "config.json").unlink(), "expected a model folder with config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"expected \*.safetensors weights"),
    "pickle only": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "only pickle weights, which can run code",
    ),
    "cut weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
        "cannot load the model",
    ),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot load the model"),
    "missing layer": (lambda f: configure(f, num_hidden_layers=5), r"model\.layers\.3\..* is missing"),
    "other width": (lambda f: configure(f, hidden_size=64), r"\(268, 32\) and not \(268, 64\)"),
    "nonsense width": (lambda f: configure(f, hidden_size="wide"), "hidden_size"),
    "unknown type": (lambda f: configure(f, model_type="jabberwock"), "jabberwock"),
    "no decoder": (lambda f: configure(f, model_type="t5"), "cannot load the model.*T5Config"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "not a valid JSON"),
    "no object": (lambda f: (f / "config.json").write_text("[1]"), "cannot load the model"),
    "no tokenizer": (lambda f: [path.unlink() for path in f.glob("tokenizer*")], "cannot load the model.*tokenizer"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_bytes(b"\xff"), "cannot load the model"),
    "weights by another name": (
        lambda f: configure(f, transformers_weights="adapter_model.bin"),
        r"but its config\.json names others",
    ),
    "an index of a pickle": (lambda f: indexed(f, "pytorch_model.bin"), "beside it, got 'pytorch_model.bin'"),
    "an index of another folder": (lambda f: indexed(f, "../evil/model.safetensors"), "beside it, got"),
    "an index of nothing": (lambda f: indexed(f, None), "beside it, got None"),
    "quantized weights": (
        lambda f: configure(f, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "are quantized",
    ),
    "an adapter too": (lambda f: (f / "adapter_config.json").write_text("{}"), "either a model or an adapter"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_folder_is_refused_on_one_line(folder, tmp_path, case):
    spoil, message = SPOILED[case]
    spoiled = copy(folder, tmp_path)
    spoil(spoiled)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(spoiled))
    assert str(spoiled) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_never_runs_its_own_code(folder, tmp_path):
    hostile, proof = copy(folder, tmp_path), tmp_path / "ran"
    (hostile / "evil.py").write_text(f"open({str(proof)!r}, 'w').close()")
    configure(hostile, model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    with pytest.raises(ModelError):
        load_model(str(hostile))
    assert not proof.exists()


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"x")
    with pytest.raises(ModelError, match=r"a folder or a \.gguf file, got the file"):
        load_model(str(path))


def test_a_gguf_file_is_loaded_saved_and_trained_like_any_model(gguf_bytes, tmp_path):
    path = tmp_path / "pico.gguf"
    path.write_bytes(gguf_bytes)
    lm, expected = load_model(str(path)), pico_language_model("llama")
    assert torch.equal(logits(lm), logits(expected))
    assert lm.tokenizer.chat_template == expected.tokenizer.chat_template
    assert lm.tokenizer.pad_token == PAD
    assert lm.provenance["base"] == str(path)
    assert list(lm.provenance["weights"]) == ["pico.gguf"]
    assert generate(lm, [Example("the end\n")], 4) == generate(expected, [Example("the end\n")], 4)
    lm.model(input_ids=torch.arange(9)[None], labels=torch.arange(9)[None]).loss.backward()
    save_model(lm, tmp_path / "saved")
    assert "quant" not in (tmp_path / "saved" / "config.json").read_text()
    assert torch.equal(logits(load_model(str(tmp_path / "saved"))), logits(lm))


@given(share=st.floats(0, 0.999))
def test_a_gguf_file_cut_anywhere_is_refused(gguf_bytes, tmp_path_factory, share):
    path = tmp_path_factory.mktemp("cut") / "cut.gguf"
    path.write_bytes(gguf_bytes[: int(share * len(gguf_bytes))])
    with pytest.raises(ModelError, match=r"cannot load the model .*cut\.gguf: "):
        load_model(str(path))


@given(place=st.integers(0, 9000), value=st.integers(0, 255))
def test_a_gguf_file_with_a_wrong_byte_in_its_header_loads_or_is_refused(gguf_bytes, tmp_path_factory, place, value):
    path = tmp_path_factory.mktemp("flip") / "flip.gguf"
    path.write_bytes(gguf_bytes[:place] + bytes([value]) + gguf_bytes[place + 1 :])
    with contextlib.suppress(ModelError):  # any other error fails the test
        assert model_type(load_model(str(path)).model) == "llama"


def test_a_gguf_beside_an_adapter_is_refused(gguf_bytes, tmp_path):
    (tmp_path / "pico.gguf").write_bytes(gguf_bytes)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="either a model or an adapter"):
        load_model(str(tmp_path / "pico.gguf"))


@pytest.mark.parametrize("family", ["mamba", "lfm2", "qwen3_next", "openai-gpt"])
def test_models_that_keep_other_things_than_keys_and_values_are_refused(family):
    small = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 16}
    small |= {"layer_types": ["conv", "full_attention"]} if family == "lfm2" else {}
    small |= {"num_experts": 2, "linear_num_value_heads": 2, "linear_num_key_heads": 1} if "next" in family else {}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **small))
    with pytest.raises(ArchitectureError, match=f"attention in every layer, got model type '{family}'"):
        check_cache(model)


def test_a_base_model_begins_as_its_tokenizer_has_it():
    tokenizer = pico_tokenizer(chat_template=False)
    tokenizer.add_special_tokens({"bos_token": TURN_END})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{TURN_END} $A", special_tokens=[(TURN_END, tokenizer.bos_token_id)]
    )
    assert ensure_chat_template(tokenizer)
    ids = encode(tokenizer, Example("Hi", "Hello")).prompt_ids
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_an_index_that_is_not_read_is_not_looked_at(folder, tmp_path):
    whole = copy(folder, tmp_path)
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00009.safetensors"}}
    for name in ("model.safetensors.index.json", "consolidated.safetensors.index.json"):
        (whole / name).write_text(json.dumps(index))
    assert load_model(str(whole)).device.type == "cpu"


def test_a_hybrid_family_without_anything_but_attention_is_taken():
    small = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 32, "num_attention_heads": 2}
    small |= {"num_key_value_heads": 1, "intermediate_size": 16, "mamba_n_heads": 2, "mamba_d_head": 16}
    for kinds in (["attention", "attention"], ["mamba", "attention"]):
        config = AutoConfig.for_model("granitemoehybrid", **small, layer_types=kinds)
        model = AutoModelForCausalLM.from_config(config)
        refused = pytest.raises(ArchitectureError) if "mamba" in kinds else contextlib.nullcontext()
        with refused:
            check_cache(model)
