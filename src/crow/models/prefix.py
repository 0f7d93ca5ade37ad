"""The tokens that all prompts of a set begin with, as a chat template's system message: run once, not for each.

Rows are padded between that prefix and the rest of their prompt, so that answers line up as under left padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache

from crow.data.encoding import Encoded
from crow.models.architecture import keeps_logits, unwrap
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


def run_prefix(model: nn.Module, ids: Tensor) -> Prefix:
    """The prefix `ids` (length,) under the model's present weights, with gradients where they are on."""
    cache = DynamicCache()
    if len(ids):
        options = {"logits_to_keep": 1} if keeps_logits(model) else {}
        model(input_ids=ids[None], cache=cache, use_cache=True, **options)
    layers: list[Any] = list(cache.layers)
    return Prefix(len(ids), [(layer.keys, layer.values) for layer in layers])
