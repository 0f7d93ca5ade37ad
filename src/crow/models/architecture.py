"""Where a causal language model keeps its layers and embeddings. The only model-specific look-ups."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from crow.errors import ArchitectureError

LAYER_PATHS = (
    "model.layers",  # llama, mistral, qwen, gemma, phi, olmo, mixtral, ...
    "transformer.h",  # gpt2, falcon, gptj, bloom
    "gpt_neox.layers",
    "model.decoder.layers",  # opt
    "model.language_model.layers",
    "transformer.blocks",  # mpt
    "backbone.layers",
)


ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
"""What transformers calls the kinds of layers that keep keys and values."""


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside PEFT, DDP or compile wrappers; adapters stay active in it."""
    inner: Any = model
    while True:
        if hasattr(inner, "get_base_model"):  # PEFT
            inner = inner.get_base_model()
        elif isinstance(getattr(inner, "_orig_mod", None), nn.Module):  # torch.compile
            inner = inner._orig_mod
        elif inner.__class__.__name__ in ("DistributedDataParallel", "FullyShardedDataParallel"):
            inner = inner.module
        else:
            return inner


def model_type(model: nn.Module) -> str:
    """The `model_type` of the configuration, for error messages."""
    config = getattr(model, "config", None)
    return str(getattr(config, "model_type", None) or type(model).__name__)


def find_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers, in order.

    Raises:
        ArchitectureError: naming the model type, if none of the known places holds them.
    """
    inner = unwrap(model)
    for path in LAYER_PATHS:
        found: object = inner
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList) and len(found) > 0:
            return found
    raise ArchitectureError(
        f"expected the decoder layers of model type {model_type(inner)!r} at one of "
        f"{', '.join(LAYER_PATHS)}, found none; add their place to crow/models/architecture.py"
    )


def find_embeddings(model: nn.Module) -> nn.Embedding:
    """The token embedding table.

    Raises:
        ArchitectureError: naming the model type, if it has none.
    """
    inner = unwrap(model)
    try:
        table = inner.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        table = None
    if table is None or getattr(table, "weight", None) is None:
        raise ArchitectureError(
            f"expected token embeddings in model type {model_type(inner)!r}, found none; "
            "crow needs a decoder that takes inputs_embeds"
        )
    return table  # type: ignore[return-value]


def embedding_rms(model: nn.Module) -> float:
    """Root mean square of the embeddings' entries, over the vocabulary: the unit of `epsilon_rms`.

    Of what the table gives, not of its weights: Gemma's table scales them by `sqrt(dim)`.
    """
    table = find_embeddings(model)
    with torch.no_grad():
        embeddings = table(torch.arange(table.weight.shape[0], device=table.weight.device))
    return float(embeddings.detach().float().pow(2).mean().sqrt())


def keeps_logits(model: nn.Module) -> bool:
    """Whether the model can compute logits at chosen positions only."""
    return "logits_to_keep" in inspect.signature(unwrap(model).forward).parameters


def takes_positions(model: nn.Module) -> bool:
    """Whether the model wants `position_ids`; others derive positions from the attention mask."""
    return "position_ids" in inspect.signature(unwrap(model).forward).parameters


def check_cache(model: nn.Module) -> None:
    """Whether all that a model keeps of earlier tokens are their keys and values, which is what crow works with.

    Raises:
        ArchitectureError: if not, as with state spaces and linear attention.
    """
    base = unwrap(model)
    kinds = set(getattr(base.config.get_text_config(), "layer_types", None) or ())
    takes = "cache" in inspect.signature(base.forward).parameters
    # A family of hybrids may have members with nothing but attention.
    other = kinds - ATTENTION if kinds else getattr(base, "_is_stateful", False)
    if not takes or other:
        raise ArchitectureError(
            f"expected a decoder with attention in every layer, got model type {model_type(model)!r}; state spaces, "
            "linear attention and models without a cache are not supported"
        )


def position_limit(model: nn.Module) -> int | None:
    """How many positions the model has learnt embeddings of; None where it works positions out."""
    table = find_embeddings(model)
    others = [each for each in unwrap(model).modules() if isinstance(each, nn.Embedding) and each is not table]
    limit = getattr(unwrap(model).config.get_text_config(), "max_position_embeddings", None)
    # Some families keep two rows more.
    return limit if any(limit is not None and 0 <= each.num_embeddings - limit <= 2 for each in others) else None


def takes_whole_cache(model: nn.Module) -> bool:
    """Whether the model can work with a cache that has its full size from the start."""
    return bool(getattr(unwrap(model), "_can_compile_fullgraph", False))


def is_spread(model: nn.Module) -> bool:
    """Whether weights are spread over processes (FSDP 2, ZeRO 3): each is whole only while its layer runs."""
    return any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in model.parameters())
