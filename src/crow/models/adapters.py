"""PEFT adapters: which base they name, putting them on it, and folding them into it for a while."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from torch import nn

from crow.errors import AdapterError
from crow.models.architecture import is_spread, unwrap
from crow.models.four_bit import is_quantized
from crow.models.language_model import LanguageModel
from crow.models.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS, hash_file, is_adapter, locate, one_line, read_mapping


def adapter_chain(reference: str, weights: bool = True) -> tuple[str, Path, list[Path]]:
    """What has to be loaded for `reference`, which may be an adapter on an adapter on a model.

    Args:
        reference: as those of `locate`.
        weights: as for `locate`.

    Returns:
        The reference of the whole model at the bottom, its path, and the adapter folders to put on
        it, lowest first.

    Raises:
        AdapterError: if an adapter names no base, or itself.
        ModelError: if the reference or a base cannot be located.
    """
    folders: list[Path] = []
    path = locate(reference, weights)
    while is_adapter(path):
        if path.resolve() in [folder.resolve() for folder in folders]:
            raise AdapterError(f"expected the adapter {path} to name a model as its base, but it leads back to itself")
        folders.insert(0, path)
        reference = adapter_base(path)
        path = locate(reference, weights)
    return reference, path, folders


def adapter_base(folder: Path) -> str:
    """The base model that an adapter folder names.

    Raises:
        AdapterError: if it names none.
    """
    base = read_mapping(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise AdapterError(f"expected base_model_name_or_path in {folder}/{ADAPTER_CONFIG}, found none")
    return base


def bases_of(reference: str | Path) -> list[str]:
    """What an adapter folder on disk leads to, one base after the other; nothing for any other reference."""
    found: list[str] = []
    seen: list[Path] = []
    path = Path(reference).expanduser()
    while is_adapter(path) and path.resolve() not in seen:  # it may lead back to itself
        seen.append(path.resolve())
        try:
            found.append(adapter_base(path))
        except AdapterError:  # told where it is loaded, if it is
            break
        path = Path(found[-1]).expanduser()
    return found


def check_adapter_path(folder: Path) -> None:
    """Raise AdapterError unless `folder` holds an adapter's configuration and safetensors."""
    if not (folder / ADAPTER_CONFIG).is_file():
        raise AdapterError(f"expected a PEFT adapter folder with {ADAPTER_CONFIG}, got {folder}")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise AdapterError(
            f"expected {ADAPTER_WEIGHTS} in {folder}; pickle checkpoints (.bin) can run code and are refused, "
            "ask the publisher for safetensors"
        )


def attach_adapter(lm: LanguageModel, folder: Path, trainable: bool) -> LanguageModel:
    """`lm` with the PEFT adapter of `folder` on top; `lm` itself should have none.

    Args:
        lm: the base.
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        trainable: whether the adapter's weights get gradients.

    Raises:
        AdapterError: if the folder holds no safetensors adapter or it does not fit.
    """
    check_adapter_path(folder)
    weights = folder / ADAPTER_WEIGHTS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(lm.model, str(folder), is_trainable=trainable)  # pyright: ignore[reportArgumentType]
        with safe_open(str(weights), framework="pt") as file:
            given = set(file.keys())
    except (
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OSError,
        ImportError,
        SafetensorError,
    ) as error:
        raise AdapterError(f"the adapter {folder} does not fit its base {lm.reference}: {one_line(error)}") from None
    # Without the embeddings: which an adapter must bring. With them: which it may bring.
    needed = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    known = set(get_peft_model_state_dict(model, save_embedding_layers=True))
    for names, problem in ((given - known, "has no place in it"), (needed - given, "is missing in the adapter")):
        if names:
            raise AdapterError(f"the adapter {folder} does not fit its base {lm.reference}: {min(names)} {problem}")
    untie(model)
    provenance = {
        **lm.provenance,
        "adapter": str(folder.resolve()),
        "adapter_weights": {weights.name: hash_file(weights)},
    }
    return dataclasses.replace(lm, model=model.eval(), provenance=provenance)


def untie(model: PeftModel) -> None:
    """Give head and embeddings weights of their own where an adapter changes one of the two.

    Attached, it changes that one alone; folded into weights that both share it would change the other as well.
    """
    base: Any = unwrap(model)
    head, table = base.get_output_embeddings(), base.get_input_embeddings()
    changed = next((each for each in (head, table) if isinstance(each, BaseTunerLayer)), None)
    if changed is None or plain(head).weight is not plain(table).weight:
        return
    layer = plain(changed)
    layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    for config in {id(each): each for each in (base.config, base.config.get_text_config())}.values():
        config.tie_word_embeddings = False


def plain(module: Any) -> Any:
    """A module as it is without an adapter."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


@contextmanager
def folded(lm: LanguageModel) -> Iterator[None]:
    """Within the context, an adapter on float32 weights is part of them: passes take a quarter less time.

    Taking it out again leaves the weights as they were to float32's rounding, and exactly so where it was still zero;
    half precision and 4 bits would lose too much, and their adapter stays beside the weights, as it does where they are
    spread over processes.
    """
    if not lm.is_adapter or lm.dtype != torch.float32 or is_spread(lm.model) or is_quantized(lm.model):
        yield
        return
    lm.model.merge_adapter()  # type: ignore[operator]
    try:
        yield
    finally:
        lm.model.unmerge_adapter()  # type: ignore[operator]
