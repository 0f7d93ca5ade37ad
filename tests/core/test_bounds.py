from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from crow.core import displacement, expansion_bound


def moved(function, points):
    """`|f(h) - h|` as consistency and norms give it."""
    images = function(points)
    cosine = torch.nn.functional.cosine_similarity(images, points, dim=-1)
    return displacement(points.norm(dim=-1), images.norm(dim=-1), 1 - cosine)


@given(seed=st.integers(0, 10_000), dim=st.integers(2, 20), scale=st.floats(0.01, 3.0))
def test_consistency_and_norms_give_the_displacement(seed, dim, scale):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(4, dim, generator=generator, dtype=torch.float64)
    images = points + scale * torch.randn(4, dim, generator=generator, dtype=torch.float64)
    found = moved(lambda _: images, points)
    torch.testing.assert_close(found, (images - points).norm(dim=-1), atol=1e-6, rtol=1e-6)


@given(seed=st.integers(0, 10_000), distance=st.floats(1e-3, 3.0), sharpness=st.floats(0.1, 50.0))
def test_no_layer_expands_more_than_the_bound(seed, distance, sharpness):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    one = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    other = one + distance * torch.nn.functional.normalize(torch.randn(5, 6, generator=generator).double(), dim=-1)

    def layer(points):
        return points + 0.3 * torch.sin(sharpness * points @ matrix)

    gap = (one - other).norm(dim=-1)
    expansion = (layer(one) - layer(other)).norm(dim=-1) / gap
    assert (expansion <= expansion_bound(gap, moved(layer, one), moved(layer, other)) + 1e-9).all()


def test_a_consistent_layer_may_have_any_jacobian():
    """Why the bound speaks of distances: the same consistency, a hundred times the slope."""
    points = torch.linspace(1.0, 2.0, 400, dtype=torch.float64)[:, None].repeat(1, 3)
    for sharpness, slope in ((1e3, 2.0), (1e5, 101.0)):

        def layer(points, sharpness=sharpness):
            return points + 1e-3 * torch.sin(sharpness * points)

        assert float(moved(layer, points).max()) < 2e-3
        steepest = 1 + 1e-3 * sharpness
        assert steepest == torch.tensor(slope)
        near = torch.zeros(1, 3, dtype=torch.float64)
        step = 1e-9
        assert abs(float((layer(near + step) - layer(near)).norm() / (step * 3**0.5)) - steepest) < 0.01 * steepest
