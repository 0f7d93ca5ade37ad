"""Records as they are committed: no path of the machine that measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crow.records import dump_json

REPOSITORY = Path(__file__).resolve().parent.parent


def portable(record: Any) -> Any:
    """`record` as plain JSON values, paths inside the repository relative to it."""
    return json.loads(dump_json(record).replace(f"{REPOSITORY}/", ""))
