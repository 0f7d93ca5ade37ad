"""CROW's equations (arXiv 2411.12768) written out as loops over plain numbers: slow, literal, obviously right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

Vector = Sequence[float]


def cosine(a: Vector, b: Vector) -> float:
    """`<a, b> / (|a| |b|)`."""
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b)))


def layer_consistency(hidden_states: Sequence[Tensor], mask: Tensor) -> list[float]:
    """For each l in 1..N the mean of `1 - cos(H^(l)_t, H^(l-1)_t)` over the real tokens t."""
    states = [state.tolist() for state in hidden_states]
    real = [(b, t) for b, row in enumerate(mask.tolist()) for t, value in enumerate(row) if value]
    result = []
    for layer in range(1, len(states)):
        total = 0.0
        for b, t in real:
            total += 1 - cosine(states[layer][b][t], states[layer - 1][b][t])
        result.append(total / len(real) if real else 0.0)
    return result


def consistency_loss(hidden_states: Sequence[Tensor], mask: Tensor, layers: Sequence[int] | None = None) -> float:
    """The mean of the per-layer consistencies over the chosen layers, all by default."""
    per_layer = layer_consistency(hidden_states, mask)
    chosen = list(range(1, len(hidden_states))) if layers is None else list(layers)
    return sum(per_layer[layer - 1] for layer in chosen) / len(chosen)


def gradient(embeddings: Tensor, loss: Callable[[Tensor], float], step: float = 1e-5) -> Tensor:
    """Central finite differences `(L(x + h) - L(x - h)) / 2h`, one entry at a time; wants float64."""
    result = embeddings.clone()
    for b in range(embeddings.shape[0]):
        for t in range(embeddings.shape[1]):
            for d in range(embeddings.shape[2]):
                above, below = embeddings.clone(), embeddings.clone()
                above[b, t, d] += step
                below[b, t, d] -= step
                result[b, t, d] = (loss(above) - loss(below)) / (2 * step)
    return result


def fgsm_perturbation(
    embeddings: Tensor, loss: Callable[[Tensor], float], epsilon: float, mask: Tensor | None = None
) -> Tensor:
    """`eps * sign(grad L)` at real tokens, 0 at padding."""
    slope = gradient(embeddings, loss)
    result = embeddings.clone()
    for b in range(embeddings.shape[0]):
        for t in range(embeddings.shape[1]):
            for d in range(embeddings.shape[2]):
                sign = (slope[b, t, d] > 0).item() - (slope[b, t, d] < 0).item()
                allowed = mask is None or mask[b, t].item() != 0
                result[b, t, d] = epsilon * sign if allowed else 0.0
    return result


def language_modeling_loss(logits: Tensor, labels: Tensor, ignored: int = -100) -> float:
    """Mean over the labelled tokens of `-log softmax(logits at the token before)[token]`."""
    rows, targets = logits.tolist(), labels.tolist()
    total, count = 0.0, 0
    for b, row in enumerate(targets):
        for t in range(1, len(row)):
            if row[t] == ignored:
                continue
            scores = rows[b][t - 1]
            top = max(scores)
            total -= scores[row[t]] - top - math.log(sum(math.exp(score - top) for score in scores))
            count += 1
    return total / count


def crow_loss(
    logits: Tensor,
    labels: Tensor,
    perturbed_states: Sequence[Tensor],
    mask: Tensor,
    alpha: float,
    layers: Sequence[int] | None = None,
) -> float:
    """`L_LM(clean input) + alpha * L_cons(perturbed input)`.

    Args:
        logits: (batch, seq, vocab), of the clean input.
        labels: (batch, seq), -100 where a token is not part of the response.
        perturbed_states: `H^(0) .. H^(N)` of the perturbed input.
        mask: (batch, seq), non-zero at real tokens.
        alpha: weight of the consistency term.
        layers: the layers that count.
    """
    return language_modeling_loss(logits, labels) + alpha * consistency_loss(perturbed_states, mask, layers)


def collapse_score(log_probs: Tensor, clean_log_probs: Tensor, divergence_weight: float = 0.3) -> float:
    """`w * mean_i KL(p_i || p_i_clean) - H(mean_i p_i)` with `0 log 0 = 0`."""
    rows = [[math.exp(value) for value in row] for row in log_probs.tolist()]
    clean = [[math.exp(value) for value in row] for row in clean_log_probs.tolist()]
    divergence = 0.0
    for p, q in zip(rows, clean, strict=True):
        for x, y in zip(p, q, strict=True):
            if x > 0:
                divergence += x * math.log(x / y) / len(rows)
    entropy = 0.0
    for column in zip(*rows, strict=True):
        mean = sum(column) / len(column)
        if mean > 0:
            entropy -= mean * math.log(mean)
    return divergence_weight * divergence - entropy
