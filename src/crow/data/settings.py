"""Settings in YAML files, and whether they have the shape they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from crow.errors import ConfigError, unknown_name

MOST = 2**31 - 1
"""The largest seed that every generator takes."""


def read_yaml(path: Path, what: str) -> Any:
    """What a YAML file holds.

    Raises:
        ConfigError: if it cannot be read; `what` says what was expected in it.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"expected {what} in {path}, but it cannot be read: {reason}") from None


def checked(value: Any, place: object, required: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    """`value` if it is a mapping with the required names and no unknown ones."""
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: expected names with values, got {type(value).__name__}")
    for name in required:
        if name not in value:
            raise ConfigError(
                f"{place}: expected {name!r}, found none; it has {', '.join(map(str, value)) or 'nothing'}"
            )
    for name in value:
        if name not in (*required, *optional):
            raise ConfigError(f"{place}: {unknown_name('setting', str(name), (*required, *optional))}")
    return value


def a_list(value: Any, name: str, place: object) -> list[Any]:
    """`value` if it is a list with something in it."""
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{place}: expected {name} to be a list with at least one entry, got {value!r}")
    return value


def a_number(value: Any, name: str, place: object, least: int = 1) -> int:
    """`value` if it is a whole number of at least `least`, and at most `MOST`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
        raise ConfigError(f"{place}: expected {name} to be a whole number from {least} to {MOST}, got {value!r}")
    return value


def a_name(value: Any, name: str, place: object) -> str:
    """`value` if it is text."""
    if not isinstance(value, str):
        raise ConfigError(f"{place}: expected {name} to be text, got {value!r}")
    return value
