"""Masked regression against plain Python loops, closed forms, and what the targets must have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional import (
    layer_target,
    masked_absolute_error,
    masked_smooth_l1,
    masked_squared_error,
    normalize_patches,
    patchify,
    unpatchify,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some(images: int, tokens: int, seed: int = 2) -> Tensor:
    mask = torch.rand(images, tokens, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[0, 0], mask[-1, -1] = True, False
    return mask


SQUARE = (lambda d: d * d, lambda d: 2 * d)
ABSOLUTE = (abs, lambda d: math.copysign(1, d))
SMOOTH = (lambda d: d * d / 1.4 if abs(d) < 0.7 else abs(d) - 0.35, lambda d: max(-1.0, min(1.0, d / 0.7)))
LOSSES: dict[str, tuple[Callable[..., Tensor], tuple[Callable[[float], float], Callable[[float], float]]]] = {
    "squared": (masked_squared_error, SQUARE),
    "absolute": (masked_absolute_error, ABSOLUTE),
    "smooth": (lambda *args: masked_smooth_l1(*args, beta=0.7), SMOOTH),
}


def loop(error: Any, slope: Any, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[float, list[Any]]:
    """Value and gradient, one number at a time."""
    rows, wanted, chosen = prediction.tolist(), target.tolist(), mask.tolist()
    masked = sum(sum(row) for row in chosen)
    total, gradient = 0.0, [[[0.0] * len(token) for token in image] for image in rows]
    for i, image in enumerate(rows):
        for j, token in enumerate(image):
            if chosen[i][j]:
                for k, value in enumerate(token):
                    difference = value - wanted[i][j][k]
                    total += error(difference) / (len(token) * masked)
                    gradient[i][j][k] = slope(difference) / (len(token) * masked)
    return total, gradient


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("shape", [(1, 2, 1), (2, 5, 3), (4, 9, 12)])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_the_loop(
    name: str, shape: tuple[int, int, int], dtype: torch.dtype, tolerance: float
) -> None:
    loss, (error, slope) = LOSSES[name]
    prediction, target, mask = random(*shape), random(*shape, seed=1), some(*shape[:2])
    value, gradient = loop(error, slope, prediction, target, mask)
    p, t = prediction.to(dtype).requires_grad_(), target.to(dtype).requires_grad_()
    found = loss(p, t, mask)
    found.backward()
    assert found.dtype == dtype
    assert found.item() == pytest.approx(value, rel=tolerance)
    expected = torch.tensor(gradient, dtype=torch.float64)
    assert p.grad is not None
    assert t.grad is not None
    torch.testing.assert_close(p.grad.double(), expected, rtol=10 * tolerance, atol=tolerance)
    torch.testing.assert_close(t.grad.double(), -expected, rtol=10 * tolerance, atol=tolerance)
    assert not p.grad[~mask].any()  # exactly: what is visible has no loss


@pytest.mark.parametrize("name", LOSSES)
def test_no_masked_token_is_no_loss_and_never_nan(name: str) -> None:
    prediction = random(2, 3, 4).requires_grad_()
    loss = LOSSES[name][0](prediction, random(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not prediction.grad.any()  # type: ignore[union-attr]


def test_smooth_l1_between_its_limits() -> None:
    prediction, target, mask = random(2, 3, 4), random(2, 3, 4, seed=1), some(2, 3)
    absolute, squared = masked_absolute_error(prediction, target, mask), masked_squared_error(prediction, target, mask)
    torch.testing.assert_close(masked_smooth_l1(prediction, target, mask, 1e-9), absolute)
    torch.testing.assert_close(masked_smooth_l1(prediction, target, mask, 1e6), squared / 2e6)
    everywhere = torch.ones_like(mask)
    expected = F.smooth_l1_loss(prediction, target, beta=2.0)
    torch.testing.assert_close(masked_smooth_l1(prediction, target, everywhere, 2.0), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_taken_in_float32(name: str) -> None:
    """300² is beyond float16."""
    prediction, mask = torch.full((1, 2, 4), 300.0, dtype=torch.float16), torch.ones(1, 2, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name][0](prediction, torch.zeros_like(prediction), mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(LOSSES[name][1][0](300.0))


@pytest.mark.parametrize(
    ("channels", "height", "width", "patch"), [(1, 4, 6, 2), (3, 6, 6, 3), (3, 4, 4, 1), (2, 4, 8, 4)]
)
def test_patches_are_read_row_by_row(channels: int, height: int, width: int, patch: int) -> None:
    images = random(2, channels, height, width)
    patches = patchify(images, patch)
    columns = width // patch
    for n in range(2):
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    token = y // patch * columns + x // patch
                    place = (y % patch * patch + x % patch) * channels + c
                    assert patches[n, token, place] == images[n, c, y, x]
    assert torch.equal(unpatchify(patches, (height // patch, columns), channels), images)


def test_patches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="whole patches; patch is 3"):
        patchify(random(1, 3, 6, 4), 3)
    for patches, grid in ((random(1, 4, 12), (2, 3)), (random(1, 4, 11), (2, 2))):
        with pytest.raises(ValueError, match="do not fill a grid"):
            unpatchify(patches, grid)
    with pytest.raises(ValueError, match=r"mask must be bool \[2, 3\]"):
        masked_squared_error(random(2, 3, 4), random(2, 3, 4), torch.ones(3, 2, dtype=torch.bool))


@pytest.mark.parametrize("pixels", [2, 12, 768])
def test_normalised_patches_have_mean_zero_and_unbiased_variance_one(pixels: int) -> None:
    patches = 5 * random(2, 3, pixels) + 3
    found = normalize_patches(patches)
    for image, expected in zip(found, patches, strict=True):
        for row, values in zip(image.tolist(), expected.tolist(), strict=True):
            mean = math.fsum(values) / pixels
            deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (pixels - 1) + 1e-6)
            assert row == pytest.approx([(v - mean) / deviation for v in values], rel=1e-9, abs=1e-12)
    # the mean square, which a prediction of zeros has for its loss
    mask = torch.ones(2, 3, dtype=torch.bool)
    zero = masked_squared_error(torch.zeros_like(found), found, mask)
    assert zero.item() == pytest.approx((pixels - 1) / pixels, abs=1e-5)


def test_a_patch_of_one_colour_becomes_zero() -> None:
    assert not normalize_patches(torch.full((1, 2, 48), 0.3, dtype=torch.float64)).abs().gt(1e-9).any()


def norm(row: list[float], eps: float) -> list[float]:
    mean = math.fsum(row) / len(row)
    variance = math.fsum((x - mean) ** 2 for x in row) / len(row)
    return [(x - mean) / math.sqrt(variance + eps) for x in row]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_layer_target_is_the_loop(count: int) -> None:
    layers = [(k + 1) * random(2, 3, 6, seed=k) + k for k in range(count)]
    found = layer_target(layers)
    for i in range(2):
        for j in range(3):
            each = [norm(layer[i, j].tolist(), 1e-5) for layer in layers]
            mean = [math.fsum(values) / count for values in zip(*each, strict=True)]
            assert found[i, j].tolist() == pytest.approx(norm(mean, 1e-5), rel=1e-9, abs=1e-12)
    torch.testing.assert_close(found.mean(-1), torch.zeros(2, 3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert found.var(-1, correction=0).sub(1).abs().max() < 1e-3


def test_no_layer_outweighs_the_others() -> None:
    layers = [random(2, 3, 6, seed=k) for k in range(3)]
    torch.testing.assert_close(layer_target([1e4 * layers[0], *layers[1:]]), layer_target(layers), rtol=0, atol=1e-3)


def test_a_prediction_of_zeros_of_gaussian_targets() -> None:
    """By the integrals of a standard normal: E x² below β, E|x| − β/2 above."""
    target = random(8, 64, 512)
    mask = torch.ones(8, 64, dtype=torch.bool)
    for beta in (1.0, 2.0):
        inside = math.erf(beta / math.sqrt(2))  # P(|x| < β)
        density = math.exp(-beta * beta / 2) / math.sqrt(2 * math.pi)
        square = inside - 2 * beta * density  # E x² where |x| < β
        expected = square / (2 * beta) + 2 * density - beta / 2 * (1 - inside)
        found = masked_smooth_l1(torch.zeros_like(target), target, mask, beta)
        assert found.item() == pytest.approx(expected, rel=0.01)
