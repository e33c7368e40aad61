"""Saliency maps against sums, closed forms and scores whose cause is known."""

import pytest
import torch
from torch.nn import functional as F

from selfsup.functional.saliency import masking_map, similarity_maps, smooth_grad


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_maps_sum_to_the_cosine():
    first, second = random(4, 6, 5, 5), random(4, 6, 3, 3, seed=1)
    maps = similarity_maps(first, second)
    cosine = F.cosine_similarity(first.mean((2, 3)), second.mean((2, 3)))
    assert [tuple(m.shape) for m in maps] == [(4, 5, 5), (4, 3, 3)]
    for found in maps:
        torch.testing.assert_close(found.sum((1, 2)), cosine, rtol=0, atol=1e-12)
    single = similarity_maps(first.float(), second.float())[0].sum((1, 2))
    torch.testing.assert_close(single.double(), cosine, rtol=0, atol=1e-6)


def test_maps_are_the_loop():
    first, second = random(1, 3, 2, 2), random(1, 3, 2, 2, seed=1)
    mean1 = [sum(first[0, d].flatten().tolist()) / 4 for d in range(3)]
    mean2 = [sum(second[0, d].flatten().tolist()) / 4 for d in range(3)]
    lengths = sum(x * x for x in mean1) ** 0.5 * sum(x * x for x in mean2) ** 0.5
    found1, found2 = similarity_maps(first, second)
    for y in range(2):
        for x in range(2):
            here1 = sum(first[0, d, y, x].item() * mean2[d] for d in range(3)) / (4 * lengths)
            here2 = sum(second[0, d, y, x].item() * mean1[d] for d in range(3)) / (4 * lengths)
            assert found1[0, y, x].item() == pytest.approx(here1, rel=1e-12)
            assert found2[0, y, x].item() == pytest.approx(here2, rel=1e-12)
    with pytest.raises(ValueError, match=r"features2 .* does not fit"):
        similarity_maps(first, second[:, :2])


def test_smooth_grad_of_a_linear_score_is_its_weight():
    weight, images = random(2, 3, 4), random(5, 2, 3, 4, seed=1)

    def score(x):
        return (x * weight).sum((1, 2, 3))

    torch.testing.assert_close(smooth_grad(score, images, squared=False), weight.expand(5, -1, -1, -1))
    torch.testing.assert_close(smooth_grad(score, images), weight.square().expand(5, -1, -1, -1))


def test_smooth_grad_averages_over_the_noise():
    # score Σ x²: the gradient 2(x + ε) has the second moment 4(x² + σ²)
    images = torch.zeros(1, 1, 100, 100, dtype=torch.float64)
    images[0, 0, 0, 0] = 2.0
    found = smooth_grad(
        lambda x: x.square().sum((1, 2, 3)), images, 20, noise=0.25, generator=torch.Generator().manual_seed(0)
    )
    assert found[..., 1:, :].mean().item() == pytest.approx(4 * 0.5**2, rel=0.01)
    no_noise = smooth_grad(lambda x: x.square().sum((1, 2, 3)), images, 2, noise=0.0, squared=False)
    torch.testing.assert_close(no_noise, 2 * images)


def test_smooth_grad_works_where_gradients_are_off_and_leaves_none():
    images = random(2, 1, 3, 3)
    with torch.no_grad():
        found = smooth_grad(lambda x: x.sum((1, 2, 3)), images, 1)
    assert not found.requires_grad
    assert images.grad is None
    with pytest.raises(ValueError, match="one an image"):
        smooth_grad(lambda x: x.sum(), images, 1)
    with pytest.raises(ValueError, match="samples"):
        smooth_grad(lambda x: x.sum((1, 2, 3)), images, 0)


def test_masking_finds_the_pixels_that_count():
    # only the brightness of a block counts, in one image upper left and in the other lower right
    images = torch.zeros(2, 1, 16, 16)
    images[0, :, :4, :4] = 1.0
    images[1, :, 12:, 12:] = 1.0

    def score(x):
        return torch.stack([x[0, 0, :4, :4].mean(), x[1, 0, 12:, 12:].mean()])

    found = masking_map(score, images, masks=600, grid=4, generator=torch.Generator().manual_seed(0))
    far = found[0, 8:, 8:].abs().mean()
    assert found[0, :4, :4].mean() > 8 * far
    assert found[1, 12:, 12:].mean() > 8 * found[1, :8, :8].abs().mean()
    constant = masking_map(lambda x: torch.full((2,), 5.0), images, masks=50, grid=4)
    torch.testing.assert_close(constant, torch.zeros(2, 16, 16), rtol=0, atol=1e-4)


def test_masking_of_one_cell_has_a_closed_form():
    # Masks of a pixel each, and the score is one pixel. A pixel seen adds (1 - fill), so the map there is 1 - fill
    # times the variance of the mask over keep (1 - keep); at pixel-size cells the mask is the pattern itself.
    images = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    images[0, 0, 3, 5] = 1.0
    found = masking_map(
        lambda x: x[:, 0, 3, 5], images, masks=4000, grid=8, keep=0.3, generator=torch.Generator().manual_seed(0)
    )
    assert found[0, 3, 5].item() == pytest.approx(1 - 1 / 64, rel=0.05)
    others = found.clone()
    others[0, 3, 5] = 0
    assert others.abs().max() < 0.1


@pytest.mark.parametrize("bad", [{"masks": 1}, {"grid": 0}, {"keep": 1.0}])
def test_masking_refuses(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        masking_map(lambda x: x.sum((1, 2, 3)), torch.zeros(1, 1, 4, 4), **bad)
