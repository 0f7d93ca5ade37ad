"""What layer consistency says about a layer's Lipschitz constant, and what it does not.

A layer f that turns its input little also moves it little: with c = 1 - cos(f(h), h) and r = |f(h)| / |h|,

    d(h) = |f(h) - h| = |h| sqrt((1 - r)^2 + 2 r c)                                (the cosine rule)
    |f(h) - f(h')| <= |h - h'| + d(h) + d(h')                                      (the triangle inequality)

So at a scale s = |h - h'| its expansion is at most `1 + (d(h) + d(h')) / s`: consistency limits how far two inputs can
be thrown apart, as far as they are not much nearer to each other than d. It does not limit the Jacobian, the expansion
as s goes to 0: `f(h) = h + a sin(k h)` is as consistent as one likes for small a, and its slope `1 + a k` as large as
one likes.
"""

from __future__ import annotations

from torch import Tensor


def displacement(lower_norm: Tensor, upper_norm: Tensor, consistency: Tensor) -> Tensor:
    """`d(h)`, of any shape, from the norms of h and f(h) and the layer's consistency `1 - cos(f(h), h)`."""
    return ((upper_norm - lower_norm).pow(2) + 2 * upper_norm * lower_norm * consistency).clamp_min(0).sqrt()


def expansion_bound(distance: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """The largest `|f(h) - f(h')| / |h - h'|` that the displacements of h and h' allow.

    Args:
        distance: |h - h'| > 0, of any shape.
        one: d(h).
        other: d(h').
    """
    return 1 + (one + other) / distance
