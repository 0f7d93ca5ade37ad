"""Records as they are shared: no path of the machine that measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from crow.records import dump_json


def portable(record: Any, *folders: Path) -> Any:
    """`record` as plain JSON values, paths inside the user's cache folder or one of `folders` relative to it."""
    text = dump_json(record)
    for folder in (user_cache_path("crow"), *folders):
        if folder != Path(folder.anchor):  # else every slash would go
            text = re.sub(rf"(?:(?<![\w/.-])|(?<=\\[nt])){re.escape(str(folder))}/", "", text)
    return json.loads(text)
