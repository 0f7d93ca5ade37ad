"""From what the user names to files that are safe to load: aliases, paths, hub ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers.utils import logging as transformers_logging

from crow.errors import ConfigError, CrowError, ModelError, unknown_name
from crow.models.smollm import ALIASES, converted_folder, packaged_gguf

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS = "*.safetensors"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DOWNLOADED = ["*.json", WEIGHTS, "*.jinja", "*.txt", "*.model"]
"""What of a hub repository is worth having: configuration, tokenizer, weights. Never a pickle or code."""


def locate(reference: str, weights: bool = True) -> Path:
    """The folder or file that `reference` names, converted or downloaded where it must be.

    Args:
        reference: an alias, a path or a hub id (`owner/name`).
        weights: without them, only what else there is comes from the hub, and an alias stays the file that it is.

    Raises:
        ModelError: if there is no such path, or the hub does not give it.
        ConfigError: if it is neither an alias nor a path nor a hub id.
    """
    check_reference(reference)
    if reference in ALIASES:
        with plain_errors(reference):
            return converted_folder(reference) if weights else packaged_gguf(reference)
    path = Path(reference).expanduser()
    if path.exists():
        return path
    wanted = DOWNLOADED if weights else [pattern for pattern in DOWNLOADED if pattern != WEIGHTS]
    try:
        return Path(snapshot_download(reference, allow_patterns=wanted, ignore_patterns=["*/*", "consolidated*"]))
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"no path {reference} here, and the hub does not give it: {one_line(error)}") from None


def check_reference(reference: str) -> None:
    """Whether a reference may name a model, as far as can be told without asking a hub.

    Raises:
        ModelError: for a path that does not exist.
        ConfigError: for what is neither an alias nor a path nor a hub id.
    """
    try:
        there = reference in ALIASES or Path(reference).expanduser().exists()
    except (OSError, RuntimeError) as error:  # a name too long, a home that nobody has
        raise ModelError(f"expected a model folder or file, got {reference[:80]!r}: {one_line(error)}") from None
    if there:
        return
    if looks_like_path(reference):
        raise ModelError(f"expected a model folder or file, got {reference}, which does not exist")
    if not is_hub_id(reference):
        close = unknown_name("model", reference, ALIASES)
        raise ConfigError(f"there is no {reference} here, expected a path, a hub id (owner/name) or an alias: {close}")


def portable(reference: str) -> str:
    """`reference` so that it holds in every working directory: a local path made absolute."""
    path = Path(reference).expanduser()
    return str(path.resolve()) if reference not in ALIASES and path.exists() else reference


def looks_like_path(reference: str) -> bool:
    """Whether the user meant a path and not a hub id."""
    return reference.startswith((".", "/", "~")) or reference.count("/") > 1 or reference.endswith(".gguf")


def is_hub_id(reference: str) -> bool:
    """Whether `reference` has the form `owner/name`."""
    owner, _, name = reference.partition("/")
    return bool(owner and name and "/" not in name)


def is_adapter(path: Path) -> bool:
    """Whether `path` is the folder of a PEFT adapter and not of a whole model."""
    return (path / ADAPTER_CONFIG).is_file() and not model_weights(path)


def model_weights(folder: Path) -> list[Path]:
    """The weight files of a whole model in `folder`."""
    return [path for path in sorted(folder.glob("*.safetensors")) if path.name != ADAPTER_WEIGHTS]


def check_model_path(path: Path, reference: str) -> None:
    """Raise ModelError unless `path` is a GGUF file or a folder with a configuration and safetensors.

    Args:
        path: where the files are.
        reference: what the user named it, for the message.
    """
    folder = path.parent if path.is_file() else path
    if (folder / ADAPTER_CONFIG).is_file():  # transformers would put that adapter on the model unasked
        raise ModelError(
            f"expected either a model or an adapter, got {reference} beside {ADAPTER_CONFIG}; separate them"
        )
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"expected a folder or a .gguf file, got the file {reference}")
        return
    if not (path / "config.json").is_file():
        raise ModelError(f"expected a model folder with config.json, got {reference}, which has none")
    check_named_weights(path, reference)
    if model_weights(path):
        return
    if has_pickle(path):
        raise ModelError(
            f"{reference} holds only pickle weights, which can run code when loaded; convert them to safetensors "
            "on a machine you can lose, or ask the publisher for safetensors"
        )
    raise ModelError(f"expected *.safetensors weights in {reference}, found none")


def check_named_weights(folder: Path, reference: str) -> None:
    """Raise ModelError where a folder's own files name other weights than the safetensors in it.

    Those would be loaded in place of what the manifest has the hashes of, pickles and files elsewhere among them.
    """
    if "transformers_weights" in read_mapping(folder / "config.json"):
        raise ModelError(f"expected weights under their usual names in {reference}, but its config.json names others")
    index = folder / INDEX
    if (folder / WHOLE).is_file() or not index.is_file():  # a whole file comes first
        return
    named, own = read_mapping(index).get("weight_map"), {path.name for path in model_weights(folder)}
    other = [name for name in (named.values() if isinstance(named, dict) else [named]) if name not in own]
    if other:
        raise ModelError(f"expected {INDEX} of {reference} to name safetensors beside it, got {other[0]!r}")


def read_mapping(path: Path) -> dict[str, Any]:
    """The object in a JSON file; nothing where it holds none, which is told where it is loaded."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def has_pickle(folder: Path) -> bool:
    """Whether `folder` holds weights in PyTorch's pickle format."""
    return any(path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl") for path in folder.iterdir())


@contextmanager
def quiet() -> Iterator[None]:
    """Within the context, transformers prints errors only, and no progress bars."""
    verbosity = transformers_logging.get_verbosity()
    progress_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if progress_bar:
            transformers_logging.enable_progress_bar()


@contextmanager
def plain_errors(reference: str) -> Iterator[None]:
    """Turn whatever the loading libraries raise into one line, and keep them quiet meanwhile.

    Raises:
        ModelError: naming `reference`. Errors of crow and a lack of memory pass through.
    """
    try:
        with quiet():
            yield
    except (CrowError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - a broken file ends in any error, the tokenizer library's bare ones too
        raise ModelError(f"cannot load the model {reference}: {one_line(error)}") from None


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of `error` on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_weights(path: Path) -> dict[str, str]:
    """SHA-256 of each weight file: those in the folder `path`, or the file `path` itself."""
    files = [path] if path.is_file() else model_weights(path)
    return {file.name: hash_file(file) for file in files}
