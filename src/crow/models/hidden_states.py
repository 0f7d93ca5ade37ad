"""Reading and writing the residual stream through forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from crow.models.architecture import find_embeddings, find_layers

Edit = Callable[[Tensor], Tensor]


@dataclass
class HiddenStates:
    """`H^(0) .. H^(N)` of the last forward pass, each (batch, seq, dim), with gradients.

    `H^(0)` is what enters the first layer. `H^(N)` is the raw output of the last layer, before the
    final norm that Hugging Face's own `hidden_states[-1]` has already gone through.
    """

    states: list[Tensor] = field(default_factory=list)


@contextmanager
def capture_hidden_states(model: nn.Module) -> Iterator[HiddenStates]:
    """Within the context, a forward pass of `model` leaves its hidden states in the yielded object.

    Raises:
        ArchitectureError: if the model's layers cannot be found.
    """
    layers = find_layers(model)
    captured = HiddenStates()

    def first_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured.states = [args[0] if args else kwargs["hidden_states"]]

    def output(_module: nn.Module, _args: tuple[Any, ...], out: Any) -> None:
        captured.states.append(out[0] if isinstance(out, tuple) else out)

    handles = [layers[0].register_forward_pre_hook(first_input, with_kwargs=True)]
    handles += [layer.register_forward_hook(output) for layer in layers]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def edit_hidden_states(model: nn.Module, edits: dict[int, Edit]) -> Iterator[None]:
    """Within the context, `H^(l)` is replaced by `edits[l](H^(l))` before layer l+1 reads it.

    Args:
        model: the model.
        edits: from layer l in 0..N-1 (0: the embeddings) to a function of (batch, seq, dim).
    """
    layers = find_layers(model)

    def hook(edit: Edit) -> Callable[..., Any]:
        def pre(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (edit(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

        return pre

    handles = [layers[i].register_forward_pre_hook(hook(edit), with_kwargs=True) for i, edit in edits.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def edit_embeddings(model: nn.Module, edit: Edit) -> Iterator[None]:
    """Within the context, the token embeddings (batch, seq, dim) are replaced by `edit` of them.

    The model looks them up itself, so that this also works where its table is spread over processes; and under gradient
    checkpointing, which runs layers again when an edit of their input is gone.
    """

    def edited(_module: nn.Module, _args: Any, out: Any) -> Any:
        return edit(out)

    handle = find_embeddings(model).register_forward_hook(edited)
    try:
        yield
    finally:
        handle.remove()
