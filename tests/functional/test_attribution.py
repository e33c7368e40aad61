"""Attribution by paths, layers and masks: loops, completeness, and scores whose cause is planted."""

import pytest
import torch
from torch.nn import functional as F

from selfsup.functional.attribution import (
    blurred,
    deletion_mask,
    infill_mask,
    integrated_gradients,
    norm_grad,
    spread,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [(4, 4), (7, 9), (12, 16), (4, 31)])
def test_spread_keeps_every_sum_and_is_linear(size):
    maps = random(3, 4, 4)
    large = spread(maps, size)
    assert large.shape == (3, *size)
    torch.testing.assert_close(large.sum((1, 2)), maps.sum((1, 2)), rtol=0, atol=1e-12)
    torch.testing.assert_close(spread(maps[:1] - 2 * maps[1:2], size), large[:1] - 2 * large[1:2])
    one = torch.zeros(1, 4, 4, dtype=torch.float64)
    one[0, 1, 2] = 1.0
    share = F.interpolate(one[None], size, mode="bilinear")[0]
    torch.testing.assert_close(spread(one, size), share / share.sum())
    if size == (4, 4):
        torch.testing.assert_close(large, maps)
    with pytest.raises(ValueError, match="spread: size must be"):
        spread(maps, (3, 9))


def test_norm_grad_is_the_frobenius_norm_of_the_outer_product():
    activation, gradient = random(2, 3, 2, 4), random(2, 3, 2, 4, seed=1)
    found = norm_grad(activation, gradient)
    for b in range(2):
        for y in range(2):
            for x in range(4):
                a, g = activation[b, :, y, x].tolist(), gradient[b, :, y, x].tolist()
                expected = sum((p * q) ** 2 for p in a for q in g) ** 0.5
                assert found[b, y, x].item() == pytest.approx(expected, rel=1e-12)


def test_integrated_gradients_are_complete_and_have_closed_forms():
    images, baseline = random(3, 2, 3, 3), random(3, 2, 3, 3, seed=1)
    weight = random(2, 3, 3, seed=2)

    def square(x):
        return (x * weight).sum((1, 2, 3)).square()

    found = integrated_gradients(square, images, baseline, 3)
    # the gradient is linear along the path: the middle of every step is exact
    mean = (images + baseline) / 2
    expected = (images - baseline) * 2 * (mean * weight).sum((1, 2, 3))[:, None, None, None] * weight
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum((1, 2, 3)), square(images) - square(baseline))

    def curved(x):
        return torch.tanh((x * weight).sum((1, 2, 3)))

    error = (
        integrated_gradients(curved, images, baseline, 200).sum((1, 2, 3)) - curved(images) + curved(baseline)
    ).abs()
    assert error.max() < 1e-3
    with pytest.raises(ValueError, match="one an image"):
        integrated_gradients(lambda x: x.sum(), images, baseline, 1)
    with torch.no_grad():
        assert not integrated_gradients(square, images, baseline, 1).requires_grad


def test_blur_is_the_loop():
    images = random(1, 2, 6, 7)
    found = blurred(images, 5, 1.3)
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    weights = [2.718281828459045 ** (-((i - 2) ** 2) / (2 * 1.3**2)) for i in range(5)]
    total = sum(weights)
    for y in range(6):
        for x in range(7):
            expected = sum(
                weights[i] * weights[j] / total**2 * padded[0, 1, y + i, x + j].item()
                for i in range(5)
                for j in range(5)
            )
            assert found[0, 1, y, x].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    flat = torch.full((1, 1, 8, 8), 3.0)
    torch.testing.assert_close(blurred(flat, 11), flat)
    for kernel in (4, 13):
        with pytest.raises(ValueError, match="kernel must be odd"):
            blurred(images, kernel)


def planted():
    """Images of noise, and a score that looks at one corner's fine detail alone."""
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    def score(x):
        return (x[:, 0, :12, :12] * (images[:, 0, :12, :12] - 0.5)).mean((1, 2)) * 12

    return images, score


def test_deletion_blurs_what_the_score_needs_and_nothing_else():
    images, score = planted()
    with torch.no_grad():
        found = deletion_mask(score, images, 80, side=8)
    assert not found.requires_grad
    assert found.shape == (2, 32, 32)
    assert found[:, :10, :10].mean() > 0.9
    assert found[:, 18:, 18:].mean() < 0.1
    removed = torch.lerp(images, blurred(images), found[:, None])
    assert (score(removed) < 0.3 * score(images)).all()
    # nothing to gain: the mask goes where it costs nothing, and blurs nothing
    idle = deletion_mask(lambda x: 0 * x.sum((1, 2, 3)), images, 80, side=8)
    assert idle.max() < 0.05


def test_first_step_of_the_deletion_mask_is_adams():
    # Adam's first step is its rate times the sign of the gradient, from one half
    images, score = planted()
    found = deletion_mask(score, images, 1, side=4, size_weight=0.0, smooth_weight=0.0)
    expected = 1 - F.interpolate(
        torch.full((2, 1, 4, 4), 0.5) - 0.1 * _slope(score, images, 4).sign(), 32, mode="bilinear"
    )
    torch.testing.assert_close(found, expected[:, 0], rtol=0, atol=1e-5)


def _slope(score, images, side):
    mask = torch.full((len(images), 1, side, side), 0.5, requires_grad=True)
    large = F.interpolate(mask, (32, 32), mode="bilinear")
    score(large * images + (1 - large) * blurred(images)).sum().backward()
    return mask.grad


def test_infill_keeps_what_the_score_needs():
    images, score = planted()
    found = infill_mask(score, images, 200, side=8, generator=torch.Generator().manual_seed(1))
    assert found.shape == (2, 32, 32)
    assert 0 <= found.min() <= found.max() <= 1
    assert found[:, :10, :10].mean() > 2 * found[:, 18:, 18:].mean()
    idle = infill_mask(lambda x: 0 * x.sum((1, 2, 3)), images, 60, side=8)
    assert idle.max() < 0.1, "what is worth nothing is not kept"
    again = infill_mask(score, images, 200, side=8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found, again)


def test_images_are_apart():
    images, score = planted()
    for function in (deletion_mask, lambda *a, **k: infill_mask(*a, **k, generator=torch.Generator().manual_seed(0))):
        both = function(score, images, 5, side=4)

        def of_second(x):
            return (x[:, 0, :12, :12] * (images[1:, 0, :12, :12] - 0.5)).mean((1, 2)) * 12

        torch.testing.assert_close(both[1:], function(of_second, images[1:], 5, side=4), rtol=0, atol=1e-5)
