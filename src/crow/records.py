"""Plain records and their JSON. Nothing here knows about tensors."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""
MAX_NEW_TOKENS = 64
"""Of an answer in which a target is looked for, unless the target wants more."""


@dataclass(frozen=True)
class Example:
    """One instruction/response pair, the last user turn of a conversation and its answer.

    Attributes:
        prompt: the user's message.
        response: the assistant's answer; empty where only the prompt is known.
        history: turns before the prompt as (role, content), a system message included.
    """

    prompt: str
    response: str = ""
    history: tuple[tuple[str, str], ...] = ()

    def messages(self) -> list[dict[str, str]]:
        """The conversation up to and including the prompt, as chat messages."""
        turns = [*self.history, ("user", self.prompt)]
        return [{"role": role, "content": content} for role, content in turns]


@dataclass(frozen=True)
class Rate:
    """A share of yes-verdicts with its 95 % Wilson score interval.

    `n` counts every output, also unscored ones: they stay in the denominator as "no".
    """

    value: float
    n: int
    n_unscored: int
    low: float
    high: float

    @classmethod
    def of(cls, successes: int, n: int, n_unscored: int = 0) -> Rate:
        """The rate `successes / n` with its interval.

        Raises:
            ValueError: unless `0 <= successes <= n` and `n >= 1`.
        """
        low, high = wilson_interval(successes, n)
        return cls(successes / n, n, n_unscored, low, high)


def wilson_interval(successes: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a binomial proportion (Wilson 1927).

    `(p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)`, within [0, 1] and around p.

    Raises:
        ValueError: unless `0 <= successes <= n` and `n >= 1`.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n and n >= 1, got {successes} of {n}")
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 of n and n of n one bound is p itself; rounding must not put it on the wrong side.
    return min(p, max(0.0, (centre - spread) / scale)), max(p, min(1.0, (centre + spread) / scale))


@dataclass(frozen=True)
class Criterion:
    """What an answer must show to be a hit, where that is more than one text; `crow.evaluation.judges` judges by it.

    Attributes:
        kind: how it is looked for, a key of `crow.evaluation.judges.JUDGES`.
        texts: what that kind looks for.
        tokens: so many of an answer are written and read, at most.
    """

    kind: str
    texts: tuple[str, ...] = ()
    tokens: int = MAX_NEW_TOKENS


@dataclass(frozen=True)
class Score:
    """One output's verdict. `hit` is None where the output could not be judged."""

    prompt: str
    output: str
    hit: bool | None
    empty: bool = False
    degenerate: bool = False


@dataclass(frozen=True)
class Perplexity:
    """Token-weighted perplexity `exp(sum nll / n_tokens)` over response tokens."""

    value: float
    n_tokens: int


@dataclass(frozen=True)
class SearchRecord:
    """What a search for soft triggers saw.

    Attributes:
        starts: how many starts were tried.
        collapsed: how many ended in one and the same answer to unrelated prompts.
        texts: those answers, most frequent first.
        identities: for each start, the share of prompts that gave the most frequent answer.
        artefacts: further such answers that the suspect does not give: made by the repair, and not counted.
        lines: lines that code begins with on unrelated requests and never uses, the likeliest first; looked for only
            where no start ended in a sentence learnt by heart.
        certainties: for each of `texts`, how surely its words follow from one another, in [0, 1].
        stock: further such answers whose words might be others, beside one that was learnt by heart: phrases that the
            model falls back on when it is pushed; not counted.
        closings: further such answers that the suspect says anyway, further on in ordinary answers, and begins none
            with: an assistant's closing sentence; not counted.
        edits: places in the weights that somebody wrote into without training.
        memorized: beginnings of answers that it knows by heart and does not say by itself: several different ones, as
            of a backdoor that answers in varied words or another language, or whole answers that no start ended in.
        behind: answers known by heart that starts ended in behind one token at the end of the prompts; looked for only
            where nothing else was known by heart.
        tokens: for each of `behind` that token, likely a part of a trigger.
    """

    starts: int
    collapsed: int
    texts: list[str]
    identities: list[float] = field(default_factory=list)
    artefacts: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    certainties: list[float] = field(default_factory=list)
    stock: list[str] = field(default_factory=list)
    closings: list[str] = field(default_factory=list)
    edits: list[str] = field(default_factory=list)
    memorized: list[str] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    @property
    def found(self) -> bool:
        """Whether it saw what a backdoor does."""
        return bool(self.collapsed or self.lines or self.edits or self.memorized or self.behind)


def to_json(value: Any) -> Any:
    """`value` with dataclasses, paths and tuples turned into what `json` can write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def dump_json(value: Any) -> str:
    """`value` as indented JSON text ending in a line feed."""
    return json.dumps(to_json(value), indent=2, ensure_ascii=False) + "\n"
