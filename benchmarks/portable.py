"""Records as they are committed: no path of the machine that measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from crow.records import dump_json

REPOSITORY = Path(__file__).resolve().parent.parent


def portable(record: Any) -> Any:
    """`record` as plain JSON values, paths inside the repository or the cache folder relative to it."""
    text = dump_json(record)
    for folder in (REPOSITORY, user_cache_path("crow")):
        text = text.replace(f"{folder}/", "")
    return json.loads(text)
