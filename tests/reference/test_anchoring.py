"""The distance of similarities against plain loops in float64: value and gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from selfsup.functional import gram_distance


def loop_value(features: list[list[float]], original: list[list[float]]) -> float:
    def cosine(a: list[float], b: list[float]) -> float:
        product = sum(x * y for x, y in zip(a, b, strict=True))
        return product / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    total, count = 0.0, len(features)
    for i in range(count):
        for j in range(count):
            total += (cosine(features[i], features[j]) - cosine(original[i], original[j])) ** 2
    return total / count**2


def loop_gradient(features: list[list[float]], original: list[list[float]], step: float = 1e-6) -> list[list[float]]:
    """Central differences of the loop, one number at a time."""
    found = []
    for row in range(len(features)):
        line = []
        for column in range(len(features[0])):
            ends = []
            for sign in (1, -1):
                moved = [list(values) for values in features]
                moved[row][column] += sign * step
                ends.append(loop_value(moved, original))
            line.append((ends[0] - ends[1]) / (2 * step))
        found.append(line)
    return found


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("count", "dim", "other"), [(1, 3, 3), (2, 3, 3), (5, 4, 2), (7, 2, 6)])
def test_value_and_gradient_are_those_of_the_loop(count: int, dim: int, other: int) -> None:
    features, original = drawn(count, dim).requires_grad_(), drawn(count, other, seed=1)
    value = gram_distance(features, original)
    expected = loop_value(features.tolist(), original.tolist())
    assert float(value.detach()) == pytest.approx(expected, rel=1e-12, abs=1e-14)
    value.backward()
    slope = torch.tensor(loop_gradient(features.tolist(), original.tolist()), dtype=torch.float64)
    torch.testing.assert_close(features.grad, slope, rtol=1e-5, atol=1e-8)
    single = gram_distance(features.detach().float(), original.float())
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_turning_and_scaling_the_features_changes_nothing_and_tearing_them_apart_does() -> None:
    features = drawn(6, 4)
    turn, _ = torch.linalg.qr(drawn(4, 4, seed=2))
    lengths = torch.arange(1.0, 7.0, dtype=torch.float64)[:, None]
    turned = (lengths * features @ turn).requires_grad_()
    value = gram_distance(turned, features)
    assert float(value.detach()) < 1e-28
    value.backward()
    assert float(turned.grad.abs().max()) < 1e-14
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    assert float(gram_distance(features[order], drawn(6, 3)[order])) == pytest.approx(
        float(gram_distance(features, drawn(6, 3))), rel=1e-12
    )
    # opposite pairs that were the same: the largest distance of two images, (2² + 2²) / 4
    apart, together = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert float(gram_distance(apart, together)) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("features", "original", "message"),
    [
        (torch.ones(2, 3), torch.ones(3, 3), "original"),
        (torch.ones(2), torch.ones(2, 3), "features"),
        (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3), "features"),
        (torch.full((2, 3), torch.nan), torch.ones(2, 3), "NaN"),
    ],
)
def test_what_does_not_fit_is_refused(features: Tensor, original: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gram_distance(features, original)
