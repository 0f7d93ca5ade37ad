"""Layer consistency: how far each layer turns the hidden state (CROW, arXiv 2411.12768, eq. 1-3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from crow.core.cosine import TokenCosine


def pair_consistencies(pairs: Iterable[tuple[Tensor, Tensor]], mask: Tensor) -> Tensor:
    """Of each pair the masked mean of `1 - cos(upper, lower)` over real tokens.

    Args:
        pairs: `H^(l-1)` and `H^(l)`, each (batch, seq, dim).
        mask: (batch, seq), non-zero at real tokens.

    Returns:
        A number in [0, 2] for each pair, float32 at least; 0 where the mask is empty. A zero vector has no direction
        and counts as orthogonal to every other, itself included.
    """
    # The cosines are small enough to be stacked, so that what follows is launched once, not for each pair.
    cosines = torch.stack([TokenCosine.apply(lower, upper) for lower, upper in pairs])  # type: ignore[misc]
    real = mask != 0
    # Not a product: what a model leaves at padding may be NaN, and 0 * NaN is NaN.
    return (1 - cosines).masked_fill(~real, 0).sum(dim=(1, 2)) / real.sum().clamp_min(1)


def layer_consistency(hidden_states: Sequence[Tensor], mask: Tensor) -> Tensor:
    """`1 - cos(H^(l), H^(l-1))` of every adjacent pair, averaged over real tokens.

    Args:
        hidden_states: `H^(0) .. H^(N)`, each (batch, seq, dim). `H^(N)` should be the raw output of
            the last layer: Hugging Face's last hidden state is taken after the final norm, which
            would make the last pair measure the norm and not the layer.
        mask: (batch, seq), non-zero at real (not padding) tokens.

    Returns:
        (N,), each entry in [0, 2].

    Raises:
        ValueError: for fewer than two hidden states, or states or a mask of different shapes.
    """
    check_states(hidden_states, mask)
    return pair_consistencies(pairwise(hidden_states), mask)


def consistency_loss(
    hidden_states: Sequence[Tensor],
    mask: Tensor,
    layers: Sequence[int] | None = None,
) -> Tensor:
    """`L_cons`: the mean of `layer_consistency` over the chosen pairs.

    Args:
        hidden_states: `H^(0) .. H^(N)`, each (batch, seq, dim).
        mask: (batch, seq), non-zero at real tokens.
        layers: the layers l in 1..N whose pair (l-1, l) counts; all by default. The last pair is
            thereby a choice.

    Returns:
        A scalar in [0, 2].

    Raises:
        ValueError: for an empty choice, a layer outside 1..N, or misshapen input.
    """
    check_states(hidden_states, mask)
    chosen = range(1, len(hidden_states)) if layers is None else layers
    if not chosen:
        raise ValueError("expected at least one layer, got an empty choice")
    outside = [layer for layer in chosen if not 1 <= layer < len(hidden_states)]
    if outside:
        raise ValueError(f"expected layers in 1..{len(hidden_states) - 1}, got {outside[0]}")
    return pair_consistencies([(hidden_states[i - 1], hidden_states[i]) for i in chosen], mask).mean()


def output_consistency_loss(clean_log_probs: Tensor, log_probs: Tensor, weights: Tensor) -> Tensor:
    """`L_out`: the mean of `KL(p_clean || p)` over the positions, each with its weight.

    What `consistency_loss` asks of layers, this asks of outputs: the perturbed model should predict what the
    unperturbed one does (virtual adversarial training, Miyato et al., arXiv 1704.03976, has the same divergence).

    Args:
        clean_log_probs: (batch, seq, vocab), log-probabilities without perturbation.
        log_probs: (batch, seq, vocab), with it.
        weights: (batch, seq), >= 0; 0 at positions that do not count. A mask is a case of it.

    Returns:
        A scalar in [0, inf); 0 where no position counts.
    """
    probs = clean_log_probs.exp()
    # A token of probability zero adds nothing; taken out before the product, which would be 0 * inf.
    gap = torch.where(probs > 0, clean_log_probs - log_probs, 0)
    divergence = (probs * gap).sum(dim=-1)
    total = weights.sum()
    return (divergence.masked_fill(weights == 0, 0) * weights).sum() / torch.where(total > 0, total, 1)


def coarse_log_probs(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of some tokens, and of all the others together: enough to compare two distributions by.

    The divergence of two distributions so coarsened is at most that of the whole ones.

    Args:
        log_probs: (..., vocab), normalized.
        tokens: (..., k) ids, distinct in each row, k < vocab.

    Returns:
        (..., k + 1), normalized, the others last.
    """
    return with_others(log_probs.gather(-1, tokens))


def with_others(log_probs: Tensor) -> Tensor:
    """Log-probabilities (..., k) of some tokens, followed by what they leave to all others together: (..., k + 1).

    It takes no pass over the vocabulary; below rounding, what is left is not told from nothing.
    """
    others = (1 - log_probs.exp().sum(dim=-1, keepdim=True)).clamp_min(torch.finfo(log_probs.dtype).eps).log()
    return torch.cat([log_probs, others], dim=-1)


def check_states(hidden_states: Sequence[Tensor], mask: Tensor) -> None:
    """Raise ValueError unless there are two states or more of one shape and the mask fits them."""
    if len(hidden_states) < 2:
        raise ValueError(f"expected at least 2 hidden states, got {len(hidden_states)}")
    shapes = {tuple(state.shape) for state in hidden_states}
    if len(shapes) > 1:
        raise ValueError(f"expected hidden states of one shape, got {' and '.join(map(str, sorted(shapes)))}")
    if tuple(mask.shape) != tuple(hidden_states[0].shape[:-1]):
        expected, got = tuple(hidden_states[0].shape[:-1]), tuple(mask.shape)
        raise ValueError(f"expected a mask of shape {expected}, got {got}")
