"""Hypothesis strategies: random tensors of random small shapes."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

seeds = st.integers(0, 2**31 - 1)


def generator(seed: int) -> torch.Generator:
    """A random generator of its own."""
    return torch.Generator().manual_seed(seed)


@st.composite
def hidden_states(draw: st.DrawFn, empty_mask: bool = False) -> tuple[list[Tensor], Tensor]:
    """`H^(0) .. H^(N)` in float64, each (batch, seq, dim), and a mask with a real token at least.

    Args:
        draw: given by hypothesis.
        empty_mask: whether a mask without any real token may come.
    """
    layers, batch, seq, dim = (draw(st.integers(low, 4)) for low in (2, 1, 1, 2))
    random = generator(draw(seeds))
    scale = 10.0 ** draw(st.integers(-3, 3))
    states = [scale * torch.randn(batch, seq, dim, generator=random, dtype=torch.float64) for _ in range(layers)]
    bits = draw(st.lists(st.booleans(), min_size=batch * seq, max_size=batch * seq))
    if not empty_mask and not any(bits):
        bits[0] = True
    return states, torch.tensor(bits).reshape(batch, seq).long()


@st.composite
def log_distributions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two tensors of log-probabilities in float64, each (batch, vocab)."""
    batch, vocab = draw(st.integers(1, 5)), draw(st.integers(2, 7))
    random = generator(draw(seeds))
    sharpness = draw(st.sampled_from([0.0, 1.0, 10.0]))
    logits = [sharpness * torch.randn(batch, vocab, generator=random, dtype=torch.float64) for _ in range(2)]
    return logits[0].log_softmax(-1), logits[1].log_softmax(-1)
