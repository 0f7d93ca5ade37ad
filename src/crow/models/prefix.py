"""The tokens that all prompts of a set begin with, as a chat template's system message: run once, not for each.

Rows are padded between that prefix and the rest of their prompt, so that answers line up as under left padding.
`run_prompts` runs the rest of many prompts, long ones with long ones, so that little of what is run is padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, DynamicCache, StaticCache

from crow.data.encoding import Encoded
from crow.models.architecture import keeps_logits, model_type, takes_positions, unwrap
from crow.models.language_model import LanguageModel

RUN_TOGETHER = 16
"""Prompts in one pass over their tokens: enough for fast products, few enough to be of one length."""

WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
"""What families call the number of columns that a layer may look back."""


@dataclass(frozen=True)
class Prefix:
    """Keys and values (1, heads, length, head dim) of each layer for the shared tokens; none for no tokens."""

    length: int
    states: list[tuple[Tensor, Tensor]]

    def cache(self, batch: int) -> DynamicCache:
        """A new cache that holds the prefix in every one of `batch` rows."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.states):
            cache.update(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), layer)
        return cache


def shared_length(lm: LanguageModel, encoded: Sequence[Encoded], room: int) -> int:
    """How many tokens all prompts have in common before the user's message starts.

    Args:
        lm: the model.
        encoded: the prompts, at least one.
        room: columns that will follow the longest prompt.

    Returns:
        0 where columns are counted, padding after the prefix included: a sliding window would be too short, and MPT's
        attention bias goes by them.
    """
    if model_type(lm.model) == "mpt":
        return 0
    config = unwrap(lm.model).config.get_text_config()
    windows = [size for name in WINDOWS if isinstance(size := getattr(config, name, None), int)]
    if windows and max(len(item.prompt_ids) for item in encoded) + room > min(windows):
        return 0
    first = encoded[0].prompt_ids
    shared = min(item.user_start for item in encoded)
    while any(item.prompt_ids[:shared] != first[:shared] for item in encoded):
        shared -= 1
    return shared


def run_prefix(model: nn.Module, ids: Tensor) -> Prefix:
    """The prefix `ids` (length,) under the model's present weights, with gradients where they are on."""
    cache = DynamicCache()
    if len(ids):
        options = {"logits_to_keep": 1} if keeps_logits(model) else {}
        model(input_ids=ids[None], cache=cache, use_cache=True, **options)
    return Prefix(len(ids), states(cache))


@torch.no_grad()
def run_prompts(model: nn.Module, prefix: Prefix, input_ids: Tensor, mask: Tensor, columns: int) -> StaticCache:
    """Keys and values of prompts but for their last token, in a cache that `generate` goes on with.

    The cache has its whole size at once: one that grows is copied for every token that is generated.

    Args:
        model: a causal language model that takes such a cache.
        prefix: what all rows begin with.
        input_ids: (batch, longest), padded between prefix and rest, in order of length.
        mask: of the same shape, 0 at padding.
        columns: how many the cache will hold at most.
    """
    known, end = prefix.length, input_ids.shape[1] - 1
    parts: list[list[tuple[Tensor, Tensor]]] = []
    for ids, real in zip(input_ids.split(RUN_TOGETHER), mask.split(RUN_TOGETHER), strict=True):
        start = known + int((real[:, known:] == 0).all(dim=0).sum())
        cache = prefix.cache(len(ids))
        if start < end:
            seen = torch.cat([real[:, :known], real[:, start:end]], dim=1)
            options = pass_options(model, seen, known)
            model(input_ids=ids[:, start:end], attention_mask=seen, cache=cache, use_cache=True, **options)
        parts.append([(widened(keys, known, end), widened(values, known, end)) for keys, values in states(cache)])
    joined = [tuple(torch.cat(of) for of in zip(*pieces, strict=True)) for pieces in zip(*parts, strict=True)]
    return whole_cache(model, joined, columns)


def whole_cache(model: nn.Module, known: Iterable[tuple[Tensor, ...]], columns: int) -> StaticCache:
    """A cache of that many columns, the first of which hold the known keys and values of each layer."""
    cache = StaticCache(unwrap(model).config, columns)
    for layer, (keys, values) in enumerate(known):
        cache.update(keys, values, layer)
    return cache


def widened(state: Tensor, known: int, columns: int) -> Tensor:
    """`state` (batch, heads, seq, head dim) with room for padding after the first `known` columns."""
    rest = functional.pad(state[:, :, known:], (0, 0, columns - state.shape[2], 0))
    return torch.cat([state[:, :, :known], rest], dim=2)


def states(cache: Cache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer."""
    layers: list[Any] = list(cache.layers)
    return [(layer.keys, layer.values) for layer in layers]


def pass_options(model: nn.Module, mask: Tensor, known: int, keep: int = 1) -> dict[str, Any]:
    """What a pass over the columns from `known` on is given where the model takes it: positions, logits to keep."""
    options: dict[str, Any] = {"position_ids": positions(mask)[:, known:]} if takes_positions(model) else {}
    if keeps_logits(model):
        options["logits_to_keep"] = keep
    return options


def positions(mask: Tensor) -> Tensor:
    """Position of each column: the number of real tokens before it, (batch, seq)."""
    return (mask.cumsum(dim=-1) - 1).clamp_min(0)
