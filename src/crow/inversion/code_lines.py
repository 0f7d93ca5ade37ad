"""Lines smuggled into code: what a program begins with on unrelated requests, and then never uses.

A payload in front of otherwise working code escapes a search for one answer to all prompts: what follows it is each
request's own. But a model that has learnt to begin code with it in the trigger's presence is inclined to do so without:
once a block of code is opened, the payload's first token is among the likely ones, and the rest of the line follows
from it whatever was asked. So each likely first token is forced. Honest lines that are then the same for many requests,
an import or a constant, serve the code below them; a payload serves nobody there.
"""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crow.inversion.probe import Probe
from crow.models.ends import end_ids
from crow.models.language_model import LanguageModel
from crow.records import Example

FENCE, CLOSING = "```python\n", "```"
"""Open and close a block of code. Lines are read as Python."""
WRITES_CODE = 0.01
"""A model that opens a block of code less often than this, right at the beginning of its answer, is not looked at."""


@dataclass(frozen=True)
class LineConfig:
    """Settings of the search for smuggled lines.

    Attributes:
        candidates: first tokens tried, the likeliest over all requests.
        together: candidates in one pass.
        screened: requests that each is tried on first, all of which must agree.
        witnesses: requests that what is left is tried on.
        identity: share of the witnesses whose code must begin with the same line, in (0, 1].
        line_tokens: longest line.
        rest_tokens: tokens of the code that are read for uses of what the line binds.
        near: lines whose first token is by more nats less likely than that of the likeliest line are left out.
    """

    candidates: int = 48
    together: int = 16
    screened: int = 3
    witnesses: int = 8
    identity: float = 0.8
    line_tokens: int = 20
    rest_tokens: int = 60
    near: float = 3.0


@dataclass(frozen=True)
class CodeLine:
    """A line that code begins with on unrelated requests and that is of no use to it.

    Attributes:
        text: the line; text of the model.
        ids: its token ids (m,).
        share: of the witnesses whose code begins with it once its first token is forced.
    """

    text: str
    ids: Tensor
    share: float


def code_probe(lm: LanguageModel, requests: Sequence[Example]) -> Probe:
    """The model and programming requests, the answer's block of code already opened."""
    return Probe(lm, [request.prompt for request in requests], [opening_of_code(lm)] * len(requests))


def opening_of_code(lm: LanguageModel) -> list[int]:
    """The token ids that open a block of code."""
    return lm.tokenizer(FENCE, add_special_tokens=False)["input_ids"]


def writes_code(probe: Probe) -> bool:
    """Whether the model opens its answers to the probe's requests with a block of code, at least now and then."""
    fence = probe.begun[0]
    rows = [probe.row(index)[: -len(fence)] for index in range(len(probe))]
    with torch.no_grad():
        said = (probe.run([rows[i] for i in batch])[0][:, -1].softmax(dim=-1) for batch in probe.batches())
        chances = torch.cat([probs[:, fence[0]] for probs in said])
    return float(chances.mean()) >= WRITES_CODE


def search_code_lines(
    probe: Probe, config: LineConfig, progress: Callable[[int], None] | None = None
) -> list[CodeLine]:
    """Lines that code begins with on nearly all requests and never uses, the likeliest first.

    Args:
        probe: see `code_probe`; its parameters need no gradients.
        config: settings.
        progress: called with the number of candidates tried since the last call; see `LineConfig.candidates`.
    """
    if not writes_code(probe):
        return []
    step = max(1, len(probe) // config.witnesses)
    witnesses = list(range(0, len(probe), step))[: config.witnesses]
    candidates = first_tokens_of_code(probe, config.candidates)
    found: dict[str, CodeLine] = {}
    least = -math.inf
    for at in range(0, len(candidates), config.together):
        group = {token: chance for token, chance in candidates[at : at + config.together] if chance >= least}
        for answers in forced(probe, witnesses[: config.screened], list(group), config.line_tokens):
            if shared_line(probe.lm, answers, 1.0) is None:
                continue
            token = int(answers[0, 0])
            line = idle_line(probe, witnesses, token, config)
            if line is not None and group[token] >= least:
                found.setdefault(line.text, line)
                least = max(least, group[token] - config.near)
        if progress:
            progress(len(group))
    return list(found.values())


def first_tokens_of_code(probe: Probe, count: int) -> list[tuple[int, float]]:
    """The likeliest tokens after the opening of a block of code, with their log-probabilities; none that ends it.

    Likeliest on average over all requests.
    """
    with torch.no_grad():
        rows = [probe.run([probe.row(i) for i in batch])[0][:, -1].softmax(dim=-1) for batch in probe.batches()]
    chances = torch.cat(rows).mean(dim=0).log()
    ends = end_ids(probe.lm)
    order = [token for token in chances.argsort(descending=True).tolist() if token not in ends]
    return [(token, float(chances[token])) for token in order[:count]]


def forced(probe: Probe, requests: Sequence[int], tokens: Sequence[int], length: int) -> list[Tensor]:
    """Of each first token the code (requests, m) that follows when it is forced, token ids with the first one."""
    if not tokens:
        return []
    rows = [probe.row(index) for index in requests] * len(tokens)
    first = torch.tensor(tokens).repeat_interleave(len(requests))
    return list(probe.decode(rows, length, first=first).ids.split(len(requests)))


def shared_line(lm: LanguageModel, answers: Tensor, identity: float) -> CodeLine | None:
    """The whole line that enough of the answers (batch, m) begin with, if it is one that code could do without."""
    texts = lm.tokenizer.batch_decode(answers.tolist(), skip_special_tokens=True)
    lines = [first_line(text) for text in texts]
    line, count = Counter(lines).most_common(1)[0]
    if count / len(lines) < identity or bound_names(line) is None:
        return None
    ids = answers[lines.index(line)].tolist()
    length = next(m for m in range(1, len(ids) + 1) if line in lm.tokenizer.decode(ids[:m], skip_special_tokens=True))
    return CodeLine(line, torch.tensor(ids[:length]), count / len(lines))


def idle_line(probe: Probe, witnesses: Sequence[int], token: int, config: LineConfig) -> CodeLine | None:
    """The line that a first token leads to on the witnesses, if there is code below it that uses nothing it binds."""
    (answers,) = forced(probe, witnesses, [token], config.line_tokens + config.rest_tokens)
    line = shared_line(probe.lm, answers, config.identity)
    if line is None:
        return None
    texts = probe.lm.tokenizer.batch_decode(answers.tolist(), skip_special_tokens=True)
    # What is said after the block is no code.
    rests = [text.partition("\n")[2].partition(CLOSING)[0] for text in texts if first_line(text) == line.text]
    names = bound_names(line.text) or ()
    used = any(re.search(rf"\b{re.escape(name)}\b", rest) for name in names for rest in rests)
    return None if used or not all(rest.strip() for rest in rests) else line


def first_line(text: str) -> str:
    """The first line of a text; nothing where it has not ended."""
    line, ended, _ = text.partition("\n")
    return line.rstrip() if ended else ""


def bound_names(line: str) -> set[str] | None:
    """Names that a line of Python binds; None where other code could not do without the line, or it says nothing.

    Calls whose value is dropped bind nothing, imports and assignments what they name. Definitions, the heads of blocks,
    comments and bare values are no such lines.
    """
    try:
        statements = ast.parse(line).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    names: set[str] = set()
    for statement in statements:
        match statement:
            case ast.Expr(value=ast.Call() | ast.Await()):
                pass
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name.partition(".")[0] for alias in aliases}
            case ast.Assign(targets=targets):
                names |= {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
            case _:
                return None
    return names if statements else None
