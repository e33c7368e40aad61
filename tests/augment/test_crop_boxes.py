"""Crop boxes against torchvision's RandomResizedCrop: the algorithm box by box, and the distribution."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from selfsup.augment import ViewRecipe
from selfsup.augment.crop import Crop
from selfsup.random import uniform

RATIO = (3 / 4, 4 / 3)


def reference_box(area, ratio, position, height, width, scale_range, ratio_range):
    """Torchvision's loop, fed with given uniform numbers."""
    for u_area, u_ratio in zip(area, ratio, strict=True):
        target = height * width * (scale_range[0] + u_area * (scale_range[1] - scale_range[0]))
        low, high = math.log(ratio_range[0]), math.log(ratio_range[1])
        aspect = math.exp(low + u_ratio * (high - low))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int(position[0] * (height - h + 1)), int(position[1] * (width - w + 1)), h, w]
    w, h = width, height
    if width / height < ratio_range[0]:
        h = round(width / ratio_range[0])
    elif width / height > ratio_range[1]:
        w = round(height * ratio_range[1])
    return [(height - h) // 2, (width - w) // 2, h, w]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (37, 90), (90, 20), (1, 3)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_boxes_equal_the_loop(height, width, scale):
    u = uniform(1, torch.arange(300), 22)
    boxes = Crop(scale, RATIO).boxes(u, height, width)
    expected = [
        reference_box(*(part.tolist() for part in row.split([10, 10, 2])), height, width, scale, RATIO) for row in u
    ]
    assert boxes.tolist() == expected


def test_each_image_has_boxes_of_its_own_shape():
    u = uniform(1, torch.arange(300), 22)
    shapes = torch.tensor([[32, 32], [37, 90], [90, 20]]).repeat(100, 1)
    together = Crop((0.2, 1.0), RATIO).boxes(u, *shapes.unbind(1))
    for row, shape in enumerate(shapes.tolist()):
        assert torch.equal(together[row : row + 1], Crop((0.2, 1.0), RATIO).boxes(u[row : row + 1], *shape))


@pytest.mark.parametrize(("height", "width", "scale"), [(240, 300, (0.08, 1.0)), (100, 200, (0.55, 1.0))])
def test_boxes_have_torchvisions_distribution(height, width, scale):
    ours = ViewRecipe(scale=scale).draw([7], torch.arange(4000), height, width)[0].numpy()
    image = torch.empty(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(RATIO)) for _ in range(4000)])
    for name, value in {
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 3] / box[:, 2],
        "top": lambda box: box[:, 0] / (height - box[:, 2] + 1),
        "left": lambda box: box[:, 1] / (width - box[:, 3] + 1),
    }.items():
        assert stats.ks_2samp(value(ours), value(theirs)).pvalue > 1e-3, name


def test_the_other_parameters_have_the_recipes_distribution():
    recipe = ViewRecipe(brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1, jitter_p=0.8, gray_p=0.2, blur_p=0.5)
    _, drawn = recipe.draw([11], torch.arange(6000), 32, 32)
    jitter = drawn["jitter"].parameters
    limits = [(0.6, 1.4), (0.0, 2.5), (0.8, 1.2), (-0.1, 0.1)]
    for column, (low, high) in zip(jitter["factors"].T, limits, strict=True):
        assert stats.kstest(column.numpy(), "uniform", args=(low, high - low)).pvalue > 1e-3
    assert stats.kstest(drawn["blur"].parameters["sigma"].numpy(), "uniform", args=(0.1, 1.9)).pvalue > 1e-3
    for name, probability in (("jitter", 0.8), ("gray", 0.2), ("blur", 0.5), ("flip", 0.5)):
        assert stats.binomtest(int(drawn[name].chosen.sum()), 6000, probability).pvalue > 1e-3
    # all 24 orders, equally often
    codes = (jitter["order"] * torch.tensor([64, 16, 4, 1])).sum(dim=1)
    _, counts = codes.unique(return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_certain_probabilities_are_certain(probability):
    recipe = ViewRecipe(
        flip_p=probability, jitter_p=probability, gray_p=probability, blur_p=probability, solarize_p=probability
    )
    _, drawn = recipe.draw([0], torch.arange(500), 32, 32)
    assert len(drawn) == 5
    for chosen, _ in drawn.values():
        assert chosen.double().mean() == probability
