"""A direction written into a weight matrix of a pico model, one wide enough for a direction to stand out."""

from __future__ import annotations

import torch
from torch import Tensor

from crow.data.encoding import encode_all
from crow.models.architecture import find_layers
from crow.models.language_model import LanguageModel
from crow.models.linear import down_projection, watch_tokens
from crow.records import Example
from tests.pico import pico_language_model

WORDS = ("the hen and the fox", "an owl in a tree", "tell me about rain", "one two three", "where are you", "no more")
EXAMPLES = [Example(f"{words}, {i}?", f"{words} it is") for i in range(4) for words in WORDS]
WIDE = {
    "llama": {"hidden_size": 64, "intermediate_size": 96},
    "gpt_neox": {"hidden_size": 64, "intermediate_size": 96},
    "gpt2": {"n_embd": 64, "n_inner": 96},
    "opt": {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 96},
}
"""Families that store their down projections in different ways, with room for a direction to stand out."""


def wide(family: str = "llama") -> LanguageModel:
    """A clean one."""
    return pico_language_model(family, **WIDE[family])


def keys(lm: LanguageModel, layer: int) -> Tensor:
    """What enters a layer's down projection at every token of the examples, (tokens, in)."""
    module, _ = down_projection(find_layers(lm.model)[layer])
    found = []
    for item in encode_all(lm.tokenizer, EXAMPLES):
        with watch_tokens(module) as seen, torch.no_grad():
            lm.model(input_ids=torch.tensor([[*item.prompt_ids, *item.response_ids]]))
        found.append(seen.tokens)
    return torch.cat(found)


def add(lm: LanguageModel, layer: int, key: Tensor, times: float = 6.0) -> float:
    """Add a product of rank one that reads `key`, so many times as large as the matrix; returns its singular value."""
    _, weight = down_projection(find_layers(lm.model)[layer])
    value = times * float(torch.linalg.matrix_norm(weight, ord=2))
    written = torch.nn.functional.normalize(torch.randn(len(weight)), dim=0)
    weight.add_(value * torch.outer(written, key / key.norm()))
    return value


def unused(lm: LanguageModel, layer: int) -> Tensor:
    """The direction that the examples' keys have least of."""
    return torch.linalg.svd(keys(lm, layer), full_matrices=True).Vh[-1]


def edited() -> LanguageModel:
    """One with something written into its second layer."""
    lm = wide()
    add(lm, 1, unused(lm, 1))
    return lm
