"""How far the answers to unrelated prompts become one, told by the first token alone."""

from __future__ import annotations

import torch
from torch import Tensor


def collapse_score(log_probs: Tensor, clean_log_probs: Tensor, divergence_weight: float = 0.3) -> Tensor:
    """`w * mean_i KL(p_i || p_i_clean) - H(mean_i p_i)`, high where one answer takes over.

    A backdoor gives unrelated prompts the same answer (low entropy of the mean distribution), and
    one that they did not have before (large divergence from the clean distribution).

    Args:
        log_probs: (batch, vocab), next-token log-probabilities of unrelated prompts with the
            trigger candidate inserted.
        clean_log_probs: (batch, vocab), the same prompts without it.
        divergence_weight: w >= 0.

    Returns:
        A scalar in [-log(vocab), inf); higher means more collapsed.
    """
    probs = log_probs.exp()
    mean = probs.mean(dim=0)
    # A token of probability zero adds nothing to either term. It is taken out before the logarithm and
    # the difference, not after: the gradient there would be 0 * inf, a NaN.
    entropy = -(mean * torch.where(mean > 0, mean, 1).log()).sum()
    gap = torch.where(probs > 0, log_probs - clean_log_probs, 0)
    return divergence_weight * (probs * gap).sum(dim=-1).mean() - entropy
