"""Loading and saving any causal language model; the only place that calls `from_pretrained`.

The model is hostile: safetensors or GGUF only (a pickle can run code), never remote code.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from crow.data.encoding import ensure_chat_template
from crow.errors import ConfigError, ModelError, ResourceError, unknown_name
from crow.models.adapters import adapter_chain, attach_adapter, check_adapter_path
from crow.models.architecture import check_cache, find_embeddings, find_layers, unwrap
from crow.models.ends import unmarked_ends
from crow.models.four_bit import four_bit_options, is_quantized, keep_differentiable
from crow.models.language_model import LanguageModel
from crow.models.processes import own_device, several
from crow.models.smollm import gguf_options
from crow.models.sources import (
    ADAPTER_CONFIG,
    check_model_path,
    hash_weights,
    locate,
    one_line,
    plain_errors,
    portable,
    quiet,
    read_mapping,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    reference: str,
    adapter: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    trainable: bool = False,
    four_bit: bool = False,
) -> LanguageModel:
    """Load a model with its tokenizer.

    Args:
        reference: an alias (`smollm2-135m`), a GGUF file, a folder with a whole model, a PEFT adapter
            folder (its recorded base is loaded too), or a hub id of a model or an adapter.
        adapter: a PEFT adapter to attach on top; an adapter that `reference` names is merged first.
        dtype: `float32`, `bfloat16` or `float16`.
        device: `auto` (a GPU where there is one), or anything `torch.device` takes.
        trainable: whether the attached adapter's weights get gradients.
        four_bit: keep the layers' weights in 4 bits; for a whole model in safetensors.

    Raises:
        ModelError: if the reference cannot be loaded safely.
        AdapterError: if an adapter does not fit its base.
        ArchitectureError: if layers or embeddings of this model type cannot be found.
        ConfigError: for an unknown alias, dtype or device.
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    target = pick_device(device)
    base, path, adapters = adapter_chain(reference)
    if adapter:
        adapters.append(locate(adapter))
    for folder in adapters:  # before the model, which may take minutes
        check_adapter_path(folder)
    lm = load_whole(base, path, dtype, four_bit_options(DTYPES[dtype], target) if four_bit else {})
    if four_bit:
        keep_differentiable(lm.model)
    else:
        lm.model.to(target)
    find_layers(lm.model)
    find_embeddings(lm.model)
    check_cache(lm.model)
    for folder in adapters:
        take_tokenizer(lm, folder)
    if ensure_chat_template(lm.tokenizer):
        lm.notes.append("the tokenizer has no chat template; using '### Instruction: / ### Response:'")
    for folder in adapters:
        lm = attach_adapter(lm.merged(), folder, trainable)
    lm.reference = reference
    return lm


def take_tokenizer(lm: LanguageModel, folder: Path) -> None:
    """Give a model the tokenizer and the chat template that an adapter was trained with, as far as its folder has them.

    A tokenizer with more tokens than the model has embeddings leaves its template alone: what else it has, the model
    cannot have learnt.

    Raises:
        ModelError: if they cannot be read.
    """
    template = folder / "chat_template.jinja"
    with plain_errors(str(folder)):
        if (folder / "tokenizer_config.json").is_file():
            # The folder has no configuration of a model, by which some tokenizers are told apart.
            config = unwrap(lm.model).config
            own: Any = AutoTokenizer.from_pretrained(str(folder), config=config, trust_remote_code=False)
            own.chat_template = own.chat_template or lm.tokenizer.chat_template
            if len(own) <= max(find_embeddings(lm.model).num_embeddings, len(lm.tokenizer)):
                lm.tokenizer = with_padding(own)
            else:
                lm.tokenizer.chat_template = own.chat_template
        elif template.is_file():
            lm.tokenizer.chat_template = template.read_text(encoding="utf-8")


def with_padding(tokenizer: Any) -> Any:
    """A tokenizer that has a token to pad with, if it has one to end with."""
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def pick_device(device: str) -> torch.device:
    """The device to run on; `auto` is a GPU where there is one, and each of several processes' own.

    Raises:
        ConfigError: if there is no such device.
    """
    if device == "auto":
        return own_device() if several() else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"expected a usable device such as cpu or cuda:0, got {device!r}: {one_line(error)}"
        ) from None
    return chosen


def load_whole(reference: str, path: Path, dtype: str, options: dict[str, Any]) -> LanguageModel:
    """The whole model (no adapter on top) at `path`; on the CPU, if `options` says no other.

    Args:
        reference: what the user named it.
        path: a model folder or a GGUF file.
        dtype: a key of `DTYPES`.
        options: further ones of `from_pretrained`.

    Raises:
        ModelError: if it cannot be loaded safely or lacks weights.
    """
    check_model_path(path, reference)
    is_gguf = path.is_file()
    source = str(path.parent if is_gguf else path)
    loader: Any = AutoModelForCausalLM
    with plain_errors(reference):
        model, report = loader.from_pretrained(
            source,
            dtype=DTYPES[dtype],
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, on one line
            **(gguf_options(path) if is_gguf else {}),
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, **({"gguf_file": path.name} if is_gguf else {})
        )
    wrong = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    wrong += [f"{name} is {tuple(got)} and not {tuple(size)}" for name, got, size in sorted(report["mismatched_keys"])]
    if wrong:  # such weights would be random numbers
        raise ModelError(f"expected weights that fit the configuration of {reference}, but {wrong[0]}")
    # Asked for in 4 bits, the model would be quantized in any case.
    quantized = "quantization_config" in read_mapping(path / "config.json") if options else is_quantized(model)
    if quantized:
        raise ModelError(f"expected weights as they were trained, but those of {reference} are quantized")
    provenance: dict[str, Any] = {
        "reference": reference,
        "base": portable(reference),
        "dtype": dtype,
        "weights": hash_weights(path),
    }
    lm = LanguageModel(model.eval(), with_padding(tokenizer), reference, provenance)
    if ignored := unmarked_ends(lm):
        words = ", ".join(repr(tokenizer.decode([token])) for token in ignored)
        lm.notes.append(f"the model's settings end answers at ordinary words, which is set aside: {words}")
    return lm


def save_model(lm: LanguageModel, folder: Path) -> None:
    """Write a whole model or an adapter, with its tokenizer, so that it appears at once or not at all.

    Files go to a temporary folder beside `folder` first and are moved when all are there, the
    configuration last: without it a folder is no model. An older model in `folder` is replaced, other
    files stay.

    Raises:
        ResourceError: if the disk is full.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        with quiet():
            write_weights(lm, temporary)
        lm.tokenizer.save_pretrained(str(temporary))
        (temporary / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        folder.mkdir(parents=True, exist_ok=True)
        configurations = ("config.json", ADAPTER_CONFIG)
        for name in configurations:
            (folder / name).unlink(missing_ok=True)
        for path in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
            path.unlink()
        for path in sorted(temporary.iterdir(), key=lambda path: path.name in configurations):
            os.replace(path, folder / path.name)
    except Exception as error:  # safetensors has an error of its own, the tokenizer library raises bare ones
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise ResourceError(f"no disk space left to save the model in {folder}; free some and run again") from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_weights(lm: LanguageModel, folder: Path) -> None:
    """Write the weights and the configuration of a whole model, or of the attached adapter alone."""
    if not lm.is_adapter:
        lm.model.save_pretrained(str(folder))  # type: ignore[operator]
        return
    if "base" in lm.provenance:
        configurations: Any = lm.model.peft_config
        for adapter in configurations.values():
            adapter.base_model_name_or_path = lm.provenance["base"]
    # Left to itself, PEFT asks the hub whether the vocabulary was resized; crow never resizes it.
    lm.model.save_pretrained(str(folder), save_embedding_layers=False)  # type: ignore[operator]
    if "base" in lm.provenance:
        path = folder / ADAPTER_CONFIG
        settings = {**json.loads(path.read_text(encoding="utf-8")), "base_model_name_or_path": lm.provenance["base"]}
        path.write_text(json.dumps(settings, indent=2) + "\n")
