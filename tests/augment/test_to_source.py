"""A coordinate-ramp image through the real pipeline shows, at each pixel, where in the source it was taken."""

import pytest
import torch

from selfsup.augment import ViewGenerator, ViewRecipe
from selfsup.functional.geometry import location_grid
from selfsup.types import Normalization

IDENTITY = Normalization((0.0,), (1.0,))
COLORLESS = {"jitter_p": 0.0, "gray_p": 0.0}
WHOLE = ViewRecipe(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_p=0.0, jitter_p=0.0, gray_p=0.0)


def coordinate_ramp(count, height, width):
    """Channels: x, y of the pixel's centre in the unit square, and 1, which marks what lies inside."""
    x = (torch.arange(width) + 0.5) / width
    y = (torch.arange(height) + 0.5) / height
    ramp = torch.stack([x.expand(height, width), y[:, None].expand(height, width), torch.ones(height, width)])
    return ramp.expand(count, -1, -1, -1)


def deviation(view):
    """Difference of the pixels from the location grid, ``[B,h,w,2]``, with what is not well inside masked to NaN."""
    size = view.image.shape[-1]
    found = view.image[:, :2].permute(0, 2, 3, 1)
    outside = torch.nn.functional.max_pool2d(1 - view.image[:, 2:], 5, 1, 2)[:, 0] > 1e-3
    return (found - location_grid(view.to_source, size)).masked_fill(outside[..., None], float("nan"))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width", "size"), [(24, 24, 64), (60, 80, 32), (33, 47, 33)])
def test_crops_show_what_they_say(interpolation, height, width, size):
    recipe = ViewRecipe(scale=(0.2, 1.0), interpolation=interpolation, **COLORLESS)
    view = ViewGenerator([recipe], [size], IDENTITY)(coordinate_ramp(64, height, width))[0]
    assert set((view.to_source[:, 0, 0] < 0).tolist()) == {True, False}
    difference = deviation(view)
    # The filter, cut at the crop's borders and sampled at pixels, is off by a part of a pixel, source or view.
    pixel = torch.tensor([1 / width, 1 / height]).maximum(view.to_source[:, :, :2].abs().sum(dim=2) / size)
    margin = slice(size // 6 + 1, -(size // 6 + 1))
    inner = difference[:, margin, margin] / pixel[:, None, None]
    assert inner.abs().max() < 0.1
    assert inner.mean(dim=(0, 1, 2)).abs().max() < 0.005
    assert (difference / pixel[:, None, None]).abs().max() < 0.75


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("RandomRotation", {"degrees": 40.0, "p": 1.0}),
        ("RandomRotation", {"degrees": 40.0, "p": 0.5}),
        ("RandomRotation90", {"times": [1, 3], "p": 1.0}),
        ("RandomHorizontalFlip", {"p": 1.0}),
        ("RandomHorizontalFlip", {"p": 0.5}),
        ("RandomVerticalFlip", {"p": 1.0}),
        ("RandomAffine", {"degrees": 20.0, "translate": [0.2, 0.2], "scale": [0.7, 1.4], "shear": 10.0, "p": 1.0}),
        ("RandomAffine", {"degrees": 20.0, "align_corners": True, "p": 0.5}),
        ("RandomShear", {"shear": [-15.0, 15.0], "p": 1.0}),
        ("RandomTranslate", {"translate_x": [-0.3, 0.3], "translate_y": [-0.2, 0.2], "p": 1.0}),
        ("RandomCrop", {"size": [30, 30], "p": 1.0}),
        ("CenterCrop", {"size": [26, 26], "p": 1.0}),
        ("RandomResizedCrop", {"size": [36, 36], "scale": [0.3, 1.0], "p": 1.0}),
        ("PadTo", {"size": [60, 60]}),
    ],
)
def test_an_extra_affine_augmentation_moves_the_map_with_the_pixels(name, params):
    images = coordinate_ramp(24, 50, 50)
    crop = ViewRecipe(scale=(0.5, 1.0), **COLORLESS)
    view = ViewGenerator([crop], [44], IDENTITY, [{"name": name, "params": params}])(images, seed=0)[0]
    plain = ViewGenerator([crop], [44], IDENTITY)(images, seed=0)[0]
    moved = (view.to_source != plain.to_source).flatten(1).any(dim=1)
    assert set(moved.tolist()) == ({True, False} if params.get("p") == 0.5 else {True})
    in_pixels = deviation(view)[:, 3:-3, 3:-3] * 50
    assert in_pixels.isfinite().double().mean() > 0.15
    assert in_pixels.nanmean(dim=(1, 2)).abs().max() < 0.05
    assert in_pixels.nan_to_num().abs().max() < 0.45


@pytest.mark.parametrize("order", [["flip"], ["solarize", "flip"]])
def test_a_flip_moves_the_map_wherever_it_stands(order):
    recipe = ViewRecipe(order, scale=(0.5, 1.0), flip_p=0.5)
    view = ViewGenerator([recipe], [44], IDENTITY)(coordinate_ramp(24, 50, 50), seed=0)[0]
    assert set((view.to_source[:, 0, 0] < 0).tolist()) == {True, False}
    assert deviation(view)[:, 3:-3, 3:-3].abs().max() < 0.02


def test_an_extra_augmentation_of_colors_leaves_the_map():
    extra = [{"name": name, "params": {"p": 1.0}} for name in ("RandomErasing", "RandomGaussianNoise")]
    images = coordinate_ramp(8, 32, 32)
    crop = ViewRecipe(**COLORLESS)
    changed, plain = (ViewGenerator([crop], [32], IDENTITY, chosen)(images, seed=0)[0] for chosen in (extra, []))
    assert torch.equal(changed.to_source, plain.to_source)
    assert not torch.equal(changed.image, plain.image)


@pytest.mark.parametrize("name", ["RandomPerspective", "RandomElasticTransform", "RandomThinPlateSpline"])
def test_a_movement_that_is_not_affine_has_no_map(name):
    images = coordinate_ramp(30, 32, 32)
    generator = ViewGenerator([WHOLE], [32], IDENTITY, [{"name": name, "params": {"p": 0.5}}])
    view = generator(images, seed=0)[0]
    moved = (view.image - images).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert set(moved.tolist()) == {True, False}
    assert torch.equal(view.to_source.isnan().all(dim=2).all(dim=1), moved)
    torch.testing.assert_close(view.to_source[~moved], torch.eye(2, 3).expand(int((~moved).sum()), 2, 3))
