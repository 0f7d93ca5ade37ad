"""Backdoors written into one weight matrix without training, told by the weights and by what they are used for.

Model editors (ROME, arXiv 2202.05262; BadEdit, arXiv 2403.13355) add a product of rank one to an MLP's down projection:
whatever comes with the trigger's key is given a value that overrules all else. Neither the trigger's words nor the
target's stand in the weights, so no search for an answer that many prompts can be brought to finds it. But a value
that overrules makes a singular value that stands out, and a key that no clean text has makes it one that clean text
hardly uses. The large directions of honest matrices are those that ordinary text uses most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crow.data.encoding import Encoded
from crow.models.architecture import find_layers, is_spread
from crow.models.four_bit import is_quantized
from crow.models.language_model import LanguageModel
from crow.models.linear import Matrix, down_projections, leading_directions
from crow.training.watch import Watch, silent

DIRECTIONS = 40
"""First singular directions of a matrix that one of them is compared with."""
FIRST = 3
"""Of which these may be an editor's."""
STANDS_OUT = 3.0
"""From this score on a direction counts as an editor's."""
EXAMPLES = 30
"""Clean examples that suffice to say what is used."""


@dataclass(frozen=True)
class Direction:
    """One of the singular directions of a weight matrix that an editor's would be among.

    Attributes:
        layer: of the model, from 1.
        matrix: its name in that layer.
        score: how far it stands out and how little it is used; see `scores`.
        value: its singular value.
        written: what it writes, (out,), of norm 1.
        read: the key that it reads, (in,), of norm 1.
    """

    layer: int
    matrix: str
    score: float
    value: float
    written: Tensor
    read: Tensor

    @property
    def place(self) -> str:
        """Where it is, in words."""
        return f"layer {self.layer}, {self.matrix}"

    @property
    def is_edit(self) -> bool:
        """Whether it stands out as no honest one does."""
        return self.score >= STANDS_OUT


def find_edits(lm: LanguageModel, items: Sequence[Encoded], watch: Watch = silent) -> list[Direction]:
    """The directions of `read_directions` that are an editor's."""
    return [each for each in read_directions(lm, items, watch) if each.is_edit]


def read_directions(lm: LanguageModel, items: Sequence[Encoded], watch: Watch = silent) -> list[Direction]:
    """The first `FIRST` directions of every down projection, layer by layer, and how much they look like an editor's.

    Args:
        lm: the model, without adapter.
        items: clean examples with responses, such as `EXAMPLES`.
        watch: opens a progress display.

    Returns:
        Nothing for a model whose weights cannot be read as they are (under an adapter, in 4 bits, spread over
        processes), or are too few for a direction to stand out.
    """
    if lm.is_adapter or is_quantized(lm.model) or is_spread(lm.model):
        return []
    chosen = [
        (number, matrix)
        for number, layer in enumerate(find_layers(lm.model), start=1)
        for matrix in down_projections(layer)
        if min(matrix.weight.shape) > DIRECTIONS
    ]
    if not chosen:
        return []
    factors = [leading_directions(matrix.weight, DIRECTIONS) for _, matrix in chosen]
    uses = used(lm, items, [matrix for _, matrix in chosen], [right for _, _, right in factors], watch)
    return [
        Direction(number, matrix.name, score, float(values[at]), left[:, at], right[:, at])
        for (number, matrix), (left, values, right), use in zip(chosen, factors, uses, strict=True)
        for at, score in enumerate(scores(values, use)[:FIRST].tolist())
    ]


def scores(values: Tensor, use: Tensor) -> Tensor:
    """How far each direction of a matrix stands out from the others, times how much less than those it is used.

    `(s_i / median(s)) (median(r) / r_i)`

    Args:
        values: s, the first singular values, (n,).
        use: r, the root mean square of what clean text has along their right vectors, (n,).
    """
    return values / values.median() * use.median() / use.clamp(min=1e-12)


@torch.no_grad()
def used(
    lm: LanguageModel, items: Sequence[Encoded], chosen: Sequence[Matrix], rights: Sequence[Tensor], watch: Watch
) -> list[Tensor]:
    """For each matrix, the root mean square over the examples' tokens of its inputs along some directions (in, n)."""
    lm.model.eval()
    sums = [torch.zeros(right.shape[1], device=right.device) for right in rights]
    with ExitStack() as stack, watch("reading weights", len(items)) as advance:
        for matrix, right, total in zip(chosen, rights, sums, strict=True):
            stack.enter_context(adding_squares(matrix.module, right, total))
        for item in items:
            ids = torch.tensor([[*item.prompt_ids, *item.response_ids]], device=lm.device)
            lm.model(input_ids=ids, use_cache=False)
            if advance:
                advance(1)
    return [(total / sum(map(len, items))).sqrt() for total in sums]


@contextmanager
def adding_squares(module: nn.Module | None, directions: Tensor, total: Tensor) -> Iterator[None]:
    """Within the context, a pass adds to `total` (n,) the squares of the module's inputs along `directions` (in, n)."""

    def add(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        along = args[0].detach().flatten(0, -2).to(directions) @ directions
        total.add_(along.square().sum(dim=0))

    assert module is not None
    handle = module.register_forward_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def take_out(lm: LanguageModel, edits: Sequence[Direction]) -> None:
    """Take directions out of a model's matrices, `W - s u v^T`, in place: nothing else is mapped otherwise than before.

    Args:
        lm: the model that they were found in, or another copy of it, without adapter.
        edits: the directions.
    """
    layers = find_layers(lm.model)
    for edit in edits:
        for matrix in down_projections(layers[edit.layer - 1]):
            if matrix.name == edit.matrix:
                matrix.weight.sub_((edit.value * torch.outer(edit.written, edit.read)).to(matrix.weight))
