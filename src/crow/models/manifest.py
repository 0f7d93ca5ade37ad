"""What a number needs beside it to be believed and repeated."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from crow.models.hardware import hardware
from crow.models.language_model import LanguageModel
from crow.records import Example, dump_json, to_json

PACKAGES = ("crow-llm", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors")


def manifest(lm: LanguageModel, data: Mapping[str, Sequence[Example]], config: Any, seed: int) -> dict[str, Any]:
    """Versions, hardware, model and data hashes, template, settings and seed of a run.

    Args:
        lm: the model as loaded.
        data: named sets of examples; hashed, never copied.
        config: a dataclass or dictionary of settings.
        seed: of the run.
    """
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "config": to_json(config),
        "model": lm.provenance,
        "template": lm.template_hash(),
        "data": {name: {"n": len(items), "sha256": hash_examples(items)} for name, items in data.items()},
        "versions": installed_versions(),
        "hardware": hardware(lm.device),
    }


def hash_examples(examples: Sequence[Example]) -> str:
    """SHA-256 of examples as JSON."""
    return hashlib.sha256(dump_json(list(examples)).encode()).hexdigest()


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that determine results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
