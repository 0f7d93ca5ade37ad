from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from crow.errors import AdapterError, ModelError
from crow.models import sources
from crow.models.adapters import bases_of, folded
from crow.models.language_model import LanguageModel
from crow.models.loading import load_model, save_model
from tests.pico import FAMILIES, pico_language_model


def add_adapter(lm: LanguageModel, seed: int = 0) -> LanguageModel:
    """`lm` with a random LoRA adapter on all linear layers."""
    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    lm.model = get_peft_model(lm.model, config).eval()  # pyright: ignore[reportArgumentType]
    return lm


@torch.no_grad()
def logits(lm: LanguageModel) -> torch.Tensor:
    """What the model says about a fixed input."""
    return lm.model(input_ids=torch.arange(10, 20)[None]).logits


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The adapter's configuration, after changes."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """A saved pico llama and an adapter on it."""
    home = tmp_path_factory.mktemp("adapters")
    save_model(pico_language_model("llama"), home / "base")
    save_model(add_adapter(load_model(str(home / "base"))), home / "adapter")
    return home / "base", home / "adapter"


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:The following")
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_folder_alone_is_a_model_of_every_family(family, tmp_path):
    save_model(pico_language_model(family), tmp_path / "base")
    lm = add_adapter(load_model(str(tmp_path / "base")))
    save_model(lm, tmp_path / "adapter")
    loaded = load_model(str(tmp_path / "adapter"))
    assert loaded.is_adapter
    torch.testing.assert_close(logits(loaded), logits(lm))
    assert not torch.allclose(logits(loaded), logits(load_model(str(tmp_path / "base"))))
    torch.testing.assert_close(logits(loaded.merged()), logits(lm), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changed", ["lm_head", "embed_tokens"])
def test_an_adapter_on_one_of_two_tied_matrices_does_not_change_the_other_when_it_is_folded_in(changed, tmp_path):
    save_model(pico_language_model("llama", tie_word_embeddings=True), tmp_path / "base")
    lm = load_model(str(tmp_path / "base"))
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=[changed, "q_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of the very trap
        lm.model = get_peft_model(lm.model, config).eval()
        expected = logits(lm)
        save_model(lm, tmp_path / "adapter")
    loaded = load_model(str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(loaded), expected)
    with folded(loaded):
        torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)
    merged = loaded.merged()
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    save_model(merged, tmp_path / "merged")
    torch.testing.assert_close(logits(load_model(str(tmp_path / "merged"))), expected, rtol=1e-4, atol=1e-4)


def test_the_base_is_recorded_as_an_absolute_path_and_no_weights_of_it_are_saved(folders, tmp_path, monkeypatch):
    base, _ = folders
    monkeypatch.chdir(base.parent)
    save_model(add_adapter(load_model("./base")), tmp_path / "adapter")
    assert settings(tmp_path / "adapter")["base_model_name_or_path"] == str(base)
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all("lora_" in name for name in names)
    assert not (tmp_path / "adapter" / "model.safetensors").exists()


def test_reference_and_provenance_of_an_adapter(folders):
    base, adapter = folders
    lm = load_model(str(adapter))
    assert lm.reference == str(adapter)
    assert lm.provenance["reference"] == lm.provenance["base"] == str(base)
    assert lm.provenance["adapter"] == str(adapter)
    assert set(lm.provenance["weights"]) == {"model.safetensors"}
    assert set(lm.provenance["adapter_weights"]) == {"adapter_model.safetensors"}


def test_an_adapter_is_put_on_top_of_a_whole_model(folders):
    base, adapter = folders
    lm = load_model(str(base), adapter=str(adapter))
    assert lm.reference == str(base)
    torch.testing.assert_close(logits(lm), logits(load_model(str(adapter))))


@pytest.mark.parametrize("trainable", [True, False])
def test_only_the_weights_of_a_trainable_adapter_get_gradients(folders, trainable):
    lm = load_model(str(folders[1]), trainable=trainable)
    learning = [name for name, parameter in lm.model.named_parameters() if parameter.requires_grad]
    assert bool(learning) is trainable
    assert all("lora_" in name for name in learning)


def test_a_merged_model_has_no_adapter_any_more(folders):
    lm = load_model(str(folders[1])).merged()
    assert not lm.is_adapter
    assert not any("lora_" in name for name, _ in lm.model.named_parameters())
    assert "adapter" not in lm.provenance
    assert lm.provenance["base"] == str(folders[1])


def test_an_adapter_on_an_adapter_is_loaded_and_names_it_as_its_base(folders, tmp_path):
    _, lower = folders
    lm = add_adapter(load_model(str(lower)).merged(), seed=1)
    save_model(lm, tmp_path / "upper")
    assert settings(tmp_path / "upper")["base_model_name_or_path"] == str(lower)
    for loaded in (load_model(str(tmp_path / "upper")), load_model(str(lower), adapter=str(tmp_path / "upper"))):
        torch.testing.assert_close(logits(loaded), logits(lm), rtol=1e-3, atol=1e-3)
        assert loaded.provenance["adapter"] == str(tmp_path / "upper")
        assert [entry["adapter"] for entry in loaded.provenance["merged"]] == [str(lower)]


def test_weights_that_no_file_holds_are_not_passed_off_as_a_base(folders, tmp_path):
    """A new adapter is merged without having been saved: what is above it has no base to name."""
    lm = add_adapter(add_adapter(load_model(str(folders[0]))).merged())
    save_model(lm, tmp_path / "orphan")
    with pytest.raises(AdapterError, match=r"expected base_model_name_or_path .*found none"):
        load_model(str(tmp_path / "orphan"))


def test_an_adapter_that_is_its_own_base_is_refused(folders, tmp_path):
    save_model(load_model(str(folders[1])), tmp_path / "loop")
    settings(tmp_path / "loop", base_model_name_or_path=str(tmp_path / "loop"))
    with pytest.raises(AdapterError, match="leads back to itself"):
        load_model(str(tmp_path / "loop"))


@pytest.fixture
def spoiled(folders, tmp_path) -> Path:
    """A copy of the adapter to spoil."""
    save_model(load_model(str(folders[1])), tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_of_another_family_is_refused(spoiled, tmp_path):
    save_model(pico_language_model("gpt2"), tmp_path / "gpt2")
    with pytest.raises(AdapterError, match=f"{spoiled} does not fit its base {tmp_path / 'gpt2'}"):
        load_model(str(tmp_path / "gpt2"), adapter=str(spoiled))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 64}, "size mismatch|does not fit"),
        ({"num_hidden_layers": 2}, r"layers\.2\..* has no place in it"),
        ({"num_hidden_layers": 4}, r"layers\.3\..* is missing in the adapter"),
    ],
)
def test_an_adapter_of_another_size_is_refused(spoiled, tmp_path, changes, message):
    save_model(pico_language_model("llama", **changes), tmp_path / "other")
    with pytest.raises(AdapterError, match=message) as caught:
        load_model(str(tmp_path / "other"), adapter=str(spoiled))
    assert "\n" not in str(caught.value)


def test_an_adapter_whose_weights_are_missing_broken_or_a_pickle_is_refused(spoiled):
    weights = spoiled / "adapter_model.safetensors"
    for content in (b"", b"no safetensors at all", weights.read_bytes()[:100]):
        weights.write_bytes(content)
        with pytest.raises(AdapterError, match="does not fit its base"):
            load_model(str(spoiled))
    save_file({}, weights)
    with pytest.raises(AdapterError, match="is missing in the adapter"):
        load_model(str(spoiled))
    weights.rename(spoiled / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"pickle checkpoints \(\.bin\) can run code"):
        load_model(str(spoiled))


@pytest.mark.parametrize("base", [None, "", 7])
def test_an_adapter_that_names_no_base_is_refused(spoiled, base):
    settings(spoiled, base_model_name_or_path=base)
    with pytest.raises(AdapterError, match=r"expected base_model_name_or_path .*found none"):
        load_model(str(spoiled))


@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"'])
def test_an_adapter_with_a_broken_configuration_is_refused(spoiled, folders, content):
    (spoiled / "adapter_config.json").write_text(content)
    with pytest.raises(AdapterError):
        load_model(str(spoiled))
    with pytest.raises(AdapterError):
        load_model(str(folders[0]), adapter=str(spoiled))


def test_a_base_that_is_gone_is_named(spoiled):
    settings(spoiled, base_model_name_or_path="/nowhere/base")
    with pytest.raises(ModelError, match="got /nowhere/base, which does not exist"):
        load_model(str(spoiled))


def test_a_whole_model_is_no_adapter(folders):
    base, _ = folders
    with pytest.raises(AdapterError, match=f"expected a PEFT adapter folder .*got {base}"):
        load_model(str(base), adapter=str(base))


def test_an_adapter_on_the_hub_is_loaded_with_its_base(folders, monkeypatch):
    base, adapter = folders
    hub = {"owner/adapter": adapter, "owner/base": base}
    monkeypatch.setattr(sources, "snapshot_download", lambda name, **_: hub[name])
    lm = load_model("owner/base", adapter="owner/adapter")
    assert lm.provenance["base"] == "owner/base"
    torch.testing.assert_close(logits(load_model("owner/adapter")), logits(lm))


def test_a_configuration_left_beside_an_adapter_does_not_make_it_a_model(spoiled):
    """Training scripts often leave one there."""
    (spoiled / "config.json").write_text("{}")
    assert load_model(str(spoiled)).is_adapter


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_folded_adapter_says_the_same_without_running(family):
    lm = add_adapter(pico_language_model(family))
    whole = logits(lm)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    with lm.model.disable_adapter():
        assert not torch.allclose(logits(lm), whole, atol=1e-3)
    with folded(lm):
        torch.testing.assert_close(logits(lm), whole, atol=1e-4, rtol=1e-4)
        lora = [module for name, module in lm.model.named_modules() if name.endswith("lora_A.default")]
        handles = [module.register_forward_hook(lambda *_: pytest.fail("the adapter ran")) for module in lora]
        logits(lm)
        for handle in handles:
            handle.remove()
    assert lora
    for name, value in lm.model.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(logits(lm), whole, atol=1e-4, rtol=1e-4)


def test_an_adapter_on_half_precision_is_not_folded():
    lm = add_adapter(pico_language_model("llama"))
    lm.model.to(torch.bfloat16)
    with folded(lm):
        assert not any(getattr(module, "merged", False) for module in lm.model.modules())


def test_an_adapter_is_taken_out_again_after_an_error():
    lm = add_adapter(pico_language_model("llama"))

    def interrupted():
        with folded(lm):
            assert any(getattr(module, "merged", False) for module in lm.model.modules())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not any(getattr(module, "merged", False) for module in lm.model.modules())


def test_the_tokenizer_and_the_template_that_an_adapter_was_trained_with_are_taken(folders, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(folders[0], base)
    (base / "chat_template.jinja").unlink()
    adapter = tmp_path / "adapter"
    shutil.copytree(folders[1], adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    (adapter / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}!")
    whole = load_model(str(adapter))
    assert (whole.tokenizer.chat_template, whole.notes) == ("{{ messages[-1]['content'] }}!", [])
    for path in adapter.glob("tokenizer*"):
        path.unlink()
    alone = load_model(str(adapter))
    assert (alone.tokenizer.chat_template, alone.notes) == ("{{ messages[-1]['content'] }}!", [])
    assert alone.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    assert "no chat template" in load_model(str(base)).notes[0]


def test_a_tokenizer_with_more_tokens_than_the_model_has_embeddings_lends_its_template(folders, tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(folders[1], adapter)
    tokenizer = load_model(str(adapter)).tokenizer
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.chat_template = "{{ messages[-1]['content'] }}?"
    tokenizer.save_pretrained(str(adapter))
    lm = load_model(str(adapter))
    assert (lm.tokenizer.chat_template, len(lm.tokenizer)) == ("{{ messages[-1]['content'] }}?", len(tokenizer) - 1)


def test_the_bases_template_serves_where_the_adapter_has_none(folders, tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(folders[1], adapter)
    (adapter / "chat_template.jinja").unlink()
    assert load_model(str(adapter)).tokenizer.chat_template == load_model(str(folders[0])).tokenizer.chat_template
    for path in adapter.glob("tokenizer*"):
        path.unlink()
    (adapter / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelError, match="cannot load the model"):
        load_model(str(adapter))


def test_bases_are_followed_until_they_lead_back(folders, tmp_path, monkeypatch):
    assert bases_of(folders[1]) == [str(folders[0])]
    assert bases_of(folders[0]) == bases_of("some/name") == []
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders[1], tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    for back in ("./adapter", "adapter/", f"/{tmp_path}/adapter"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": back}))
        assert bases_of("adapter") == [back]
