"""What one search of a purification found, as it is kept on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crow.records import SearchRecord

KINDS = ("answers", "lines", "memorized", "steps", "behind", "tokens")
"""What is found as token ids."""


def kept_search(work: Path, number: int) -> Path:
    """Where a purification that works in `work` keeps what its search of that number, from 0, found."""
    return work / f"search-{number}.json"


@dataclass(frozen=True)
class Found:
    """What the rest of a run needs of a search.

    Attributes:
        record: of it.
        answers: that unrelated prompts were brought to, token ids.
        lines: that code begins with and never uses, token ids; looked for where no answer was known by heart.
        memorized: beginnings known by heart, token ids, other than those of the answers; looked for where there were no
            lines.
        steps: known by heart behind those of the model's own reasoning, token ids; looked for where there was nothing
            else. Their texts are among the record's beginnings.
        behind: answers behind trigger tokens, token ids; looked for where nothing of all this was known by heart.
        tokens: of each of these, the trigger token, (1,).
        seconds: it took when it was made.
    """

    record: SearchRecord
    answers: list[Tensor]
    lines: list[Tensor] = field(default_factory=list)
    memorized: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    behind: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0

    def stored(self) -> dict[str, Any]:
        """It as plain JSON values."""
        rows = {kind: [ids.tolist() for ids in getattr(self, kind)] for kind in KINDS}
        return {"record": dataclasses.asdict(self.record), **rows, "seconds": self.seconds}

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Found:
        """What `stored` wrote, or an earlier version of it that knew fewer kinds."""
        rows = {kind: [torch.tensor(ids) for ids in stored.get(kind, [])] for kind in KINDS}
        return cls(SearchRecord(**stored["record"]), **rows, seconds=stored["seconds"])
