"""What changes negatives: mixtures lie where they should, and pairs are drawn apart along their own line."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from selfsup.negatives import FeatureTransformation, FeatureTransformationConfig, MoCHi, MoCHiConfig
from selfsup.negatives.feature_transformation import beta_quantiles
from selfsup.objectives import Embeddings


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embeddings(images: int = 6, keys: int = 40, dim: int = 8) -> Embeddings:
    views = torch.randn(2, images, dim, generator=generator(), dtype=torch.float64) * 3
    queue = normalize(torch.randn(keys, dim, generator=generator(1), dtype=torch.float64), dim=1)
    return Embeddings(views, torch.arange(images), queue=queue)


def test_mixtures_are_of_the_nearest_keys_and_of_the_query() -> None:
    given = embeddings()
    assert given.queue is not None
    mixed = MoCHi(MoCHiConfig(hardest=3, pairs=50, with_query=50, wait_epochs=0))(given, generator(), 0).mixed
    assert mixed is not None
    assert mixed.shape == (6, 100, 8)
    torch.testing.assert_close(mixed.norm(dim=-1), torch.ones(6, 100, dtype=torch.float64))
    query = normalize(given.views[0], dim=1)
    for number in range(6):
        nearest = given.queue[(given.queue @ query[number]).argsort(descending=True)[:3]]
        among = torch.linalg.lstsq(nearest.T, mixed[number, :50].T).solution  # shares of the keys, up to a factor
        torch.testing.assert_close(nearest.T @ among, mixed[number, :50].T)
        assert bool((among > -1e-9).all())
        assert int((among > 1e-9).sum(0).max()) <= 2
        assert (among > 1e-9).any(1).all(), "all of the nearest are drawn"
        basis = torch.cat([query[number][None], nearest])
        with_query = torch.linalg.lstsq(basis.T, mixed[number, 50:].T).solution
        torch.testing.assert_close(basis.T @ with_query, mixed[number, 50:].T)
        share = with_query[0] / with_query.sum(0)
        assert bool(((share > 0) & (share < 0.5)).all()), "at most half of the query"
        assert share.max() > 0.4
        assert int((with_query[1:] > 1e-9).sum(0).max()) == 1


def test_mixtures_carry_no_gradient_and_wait() -> None:
    given = embeddings()
    given.views.requires_grad_()
    mochi = MoCHi(MoCHiConfig(hardest=3, pairs=2, with_query=2, wait_epochs=2))
    assert mochi(given, generator(), 1) is given
    mixed = mochi(given, generator(), 2).mixed
    assert mixed is not None
    assert not mixed.requires_grad
    assert not torch.equal(mixed, mochi(given, generator(1), 2).mixed)


def test_query_and_key_are_drawn_apart_along_their_line_and_the_queue_is_mixed() -> None:
    given = embeddings()
    change = FeatureTransformation(FeatureTransformationConfig(by_dimension=False))
    found = change(given, generator(), 0)
    query, key = normalize(given.views, dim=-1)
    before, after = (query * key).sum(1), (normalize(found.views, dim=-1)).prod(0).sum(1)
    assert bool((after < before).all())
    for number in range(6):  # on the line of both, beyond the one that it began at
        share = torch.linalg.lstsq(torch.stack([query[number], key[number]], 1), found.views[0, number][:, None])
        first, second = share.solution[:, 0].tolist()
        assert first + second == pytest.approx(1)
        assert 1 <= first <= 2
    assert found.queue is not None
    assert given.queue is not None
    torch.testing.assert_close(found.queue.norm(dim=1), torch.ones(40, dtype=torch.float64))
    pairs = torch.linalg.lstsq(given.queue.T, found.queue.T, driver="gelsd").solution
    torch.testing.assert_close(given.queue.T @ pairs, found.queue.T)
    assert found.mixed is None


def test_each_part_can_be_left_out_and_shares_may_be_of_each_dimension() -> None:
    given = embeddings()
    positives = FeatureTransformation(FeatureTransformationConfig(negative_alpha=None))(given, generator(), 0)
    assert positives.queue is given.queue
    query, key = normalize(given.views, dim=-1)
    share = (positives.views[0] - key) / (query - key)
    assert bool(((share > 1) & (share < 2)).all())
    assert share.std() > 0.05
    torch.testing.assert_close(positives.views.sum(0), query + key)  # the two shares are one
    negatives = FeatureTransformation(FeatureTransformationConfig(positive_alpha=None))(given, generator(), 0)
    torch.testing.assert_close(negatives.views, normalize(given.views, dim=-1))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.6, 2.0])
def test_shares_have_the_moments_of_their_distribution(alpha: float) -> None:
    numbers = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    shares = beta_quantiles(numbers, alpha)
    assert shares.mean().item() == pytest.approx(0.5, abs=1e-4)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.01)
    assert bool((shares[1:] >= shares[:-1]).all())
    assert not math.isnan(beta_quantiles(torch.tensor([0.0, 1.0]), alpha).sum().item())
