"""Settings in YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from crow.errors import ConfigError


def read_yaml(path: Path, what: str) -> Any:
    """What a YAML file holds.

    Raises:
        ConfigError: if it cannot be read; `what` says what was expected in it.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"expected {what} in {path}, but it cannot be read: {reason}") from None
