"""The tokens that all prompts of a set begin with, as a chat template's system message: run once, not for each.

Rows are padded between that prefix and the rest of their prompt, so that answers line up as under left padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from crow.data.encoding import Encoded
from crow.models.architecture import unwrap
from crow.models.language_model import LanguageModel


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
        0 where a sliding window would be too short: it counts columns, padding after the prefix included.
    """
    window = getattr(unwrap(lm.model).config.get_text_config(), "sliding_window", None)
    if window is not None and max(len(item.prompt_ids) for item in encoded) + room > window:
        return 0
    first = encoded[0].prompt_ids
    shared = min(item.user_start for item in encoded)
    while any(item.prompt_ids[:shared] != first[:shared] for item in encoded):
        shared -= 1
    return shared


@torch.no_grad()
def run_prefix(lm: LanguageModel, ids: Sequence[int]) -> Prefix:
    """The prefix `ids` under the model's present weights."""
    cache = DynamicCache()
    if ids:
        tokens = torch.tensor([list(ids)], dtype=torch.long, device=lm.device)
        lm.model(input_ids=tokens, cache=cache, use_cache=True)
    layers: list[Any] = list(cache.layers)
    return Prefix(len(ids), [(layer.keys, layer.values) for layer in layers])
