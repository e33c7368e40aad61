"""Each operation against torchvision's, image by image, and against Kornia's where the two libraries agree."""

import kornia
import numpy as np
import pytest
import torch
from PIL import ImageFilter
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from selfsup.augment.crop import Crop
from selfsup.augment.operations import jitter
from selfsup.augment.operations.blur import Blur, gaussian_blur
from selfsup.augment.operations.gray import Gray
from selfsup.augment.operations.solarize import Solarize

CLOSE = {"rtol": 0, "atol": 1e-4}


def random_images(channels=3, size=(17, 23), count=8, seed=0):
    """Noise, with grey, black, white and primary-coloured images among it: where hue is singular."""
    images = torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(seed))
    images[0] = images[0, :1]
    images[1] = 0
    images[2] = 1
    images[3] = images[3].round()
    return images


def random_factors(low, high, count=8):
    return torch.linspace(low, high, count)


def each(function, images, *parameters):
    """Apply torchvision's function to each image with its parameter."""
    rows = zip(images, *(parameter.tolist() for parameter in parameters), strict=True)
    return torch.stack([function(*row) for row in rows])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(8, 8), (24, 24), (40, 31), (5, 60)])
def test_crop_equals_torchvision(interpolation, size):
    images = random_images(size=(31, 45))
    box = torch.tensor(
        [
            [0, 0, 31, 45],
            [3, 5, 20, 20],
            [30, 44, 1, 1],
            [0, 40, 31, 5],
            [7, 0, 24, 24],
            [1, 2, 8, 8],
            [10, 10, 5, 30],
            [29, 0, 2, 45],
        ]
    )
    flip = torch.tensor([False, True] * 4)
    ours = Crop(interpolation=interpolation).apply(images, box, flip, size)
    for image, (top, left, height, width), mirrored, result in zip(
        images, box.tolist(), flip.tolist(), ours, strict=True
    ):
        mode = InterpolationMode(interpolation)
        expected = F.resized_crop(image, top, left, height, width, list(size), interpolation=mode, antialias=True)
        expected = F.horizontal_flip(expected) if mirrored else expected
        torch.testing.assert_close(result, expected.clamp(0, 1), **CLOSE)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_crop_reads_nothing_outside_its_box(interpolation):
    image = random_images(count=5, size=(20, 20))[4:]
    other = torch.zeros_like(image)
    other[:, :, 5:12, 3:17] = image[:, :, 5:12, 3:17]
    crop, arguments = Crop(interpolation=interpolation), (torch.tensor([[5, 3, 7, 14]]), torch.tensor([False]), (9, 9))
    assert torch.equal(crop.apply(image, *arguments), crop.apply(other, *arguments))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_color_equals_torchvision(name, channels):
    images = random_images(channels)
    factors = random_factors(-0.5, 0.5) if name == "hue" else random_factors(0.0, 1.9)
    before = images.clone()
    ours = getattr(jitter, f"adjust_{name}")(images, factors)
    torch.testing.assert_close(ours, each(getattr(F, f"adjust_{name}"), images, factors), **CLOSE)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (jitter.adjust_brightness, kornia.enhance.adjust_brightness_accumulative, random_factors(0.0, 1.9)),
        (jitter.adjust_contrast, kornia.enhance.adjust_contrast_with_mean_subtraction, random_factors(0.0, 1.9)),
        (
            jitter.adjust_saturation,
            kornia.enhance.adjust_saturation_with_gray_subtraction,
            random_factors(0.0, 1.9),
        ),
        (
            jitter.adjust_hue,
            lambda images, turns: kornia.enhance.adjust_hue(images, turns * 2 * torch.pi),
            random_factors(-0.45, 0.45),
        ),
    ],
)
def test_color_equals_kornia(ours, theirs, factors):
    images = random_images()
    # Kornia's red weight is 0.299 where torchvision's is 0.2989: at most 9e-5 with these factors
    torch.testing.assert_close(ours(images, factors), theirs(images, factors), **CLOSE)


def test_hue_keeps_value_and_saturation_and_a_full_turn_is_none():
    images = random_images()
    turned = jitter.adjust_hue(images, random_factors(-0.5, 0.5))
    torch.testing.assert_close(turned.amax(1), images.amax(1))
    torch.testing.assert_close(turned.amin(1), images.amin(1))
    torch.testing.assert_close(jitter.adjust_hue(images, torch.ones(8)), images, rtol=0, atol=2e-6)


def test_added_brightness_is_kornias():
    images, number = random_images(), random_factors(-0.4, 0.4)
    expected = kornia.enhance.adjust_brightness(images, number)
    torch.testing.assert_close(jitter.add_brightness(images, number), expected, **CLOSE)


def test_added_brightness_is_drawn_from_both_sides_of_zero_and_leaves_the_others_as_they_are():
    u = torch.rand(2000, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    multiplied, added = (jitter.Jitter(brightness_added=how).parameters(u) for how in (False, True))
    assert torch.equal(multiplied["order"], added["order"])
    assert torch.equal(multiplied["factors"][:, 1:], added["factors"][:, 1:])
    torch.testing.assert_close(added["factors"][:, 0], 0.8 * u[:, 4] - 0.4)
    wide = jitter.Jitter(brightness=1.5, brightness_added=True).parameters(u)["factors"][:, 0]
    torch.testing.assert_close(wide, 3 * u[:, 4] - 1.5)


@pytest.mark.parametrize("channels", [1, 3])
def test_grayscale_equals_torchvision(channels):
    images = random_images(channels)
    expected = F.rgb_to_grayscale(images, num_output_channels=3) if channels == 3 else images
    torch.testing.assert_close(Gray().apply(images), expected, **CLOSE)


@pytest.mark.parametrize("kernel", [3, 5, 9, 23])
def test_blur_equals_torchvision_and_kornia(kernel):
    images = random_images(size=(24, 30))
    sigma = random_factors(0.1, 2.0)
    ours = gaussian_blur(images, sigma, kernel)
    expected = each(lambda image, s: F.gaussian_blur(image, [kernel, kernel], [s, s]), images, sigma)
    torch.testing.assert_close(ours, expected, **CLOSE)
    theirs = kornia.filters.gaussian_blur2d(images, kernel, sigma[:, None].expand(-1, 2), border_type="reflect")
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_blur_mirrors_an_image_smaller_than_its_kernel_again_and_again():
    images = random_images(size=(5, 3)).double()
    sigma = torch.tensor([4.0, 0.5] * 4, dtype=torch.float64)
    for image, s, found in zip(images.numpy(), sigma.tolist(), gaussian_blur(images, sigma, 45), strict=True):
        mirrored = np.pad(image, ((0, 0), (22, 22), (22, 22)), mode="reflect")
        weight = np.exp(-(np.arange(-22, 23) ** 2) / (2 * s * s))
        weight /= weight.sum()
        rows = np.stack([np.tensordot(weight, mirrored[:, i : i + 45], (0, 1)) for i in range(5)], axis=1)
        expected = np.stack([np.tensordot(weight, rows[:, :, i : i + 45], (0, 2)) for i in range(3)], axis=2)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("side", [32, 96, 224])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_the_blur_of_a_point_is_as_wide_as_asked_for_at_any_size(side, sigma):
    point = torch.zeros(1, 1, side, side)
    point[..., side // 2, side // 2] = 1.0
    spread = Blur(p=1.0).apply(point, torch.tensor([sigma]))[0, 0].double()
    place = torch.arange(side) - side // 2
    # a Gaussian at whole pixels, hardly different from the continuous one but where it is very narrow
    density = torch.exp(-0.5 * (torch.arange(-side, side + 1).double() / sigma).square())
    expected = (density / density.sum() * torch.arange(-side, side + 1).double().square()).sum()
    for axis in (0, 1):
        width = (spread.sum(axis) * place.square()).sum()
        torch.testing.assert_close(width.sqrt(), expected.sqrt(), rtol=1e-4, atol=0)
    assert spread.sum().item() == pytest.approx(1, abs=1e-5)


def test_a_window_cuts_the_blur_as_simclrs_code_does():
    point = torch.zeros(1, 1, 96, 96)
    point[..., 48, 48] = 1.0
    two = torch.tensor([2.0])
    assert int((Blur(p=1.0, kernel=0.1).apply(point, two)[0, 0].sum(0) > 0).sum()) == 9
    assert int((Blur(p=1.0).apply(point, two)[0, 0].sum(0) > 0).sum()) == 23
    large = random_images(size=(224, 224))[:1]  # there a tenth of the side is as wide as the Gaussian
    assert torch.equal(Blur(p=1.0, kernel=0.1).apply(large, two), Blur(p=1.0).apply(large, two))


def test_blur_is_pillows_but_for_its_rounding_and_its_borders():
    coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(coarse, 32, mode="bicubic").clamp(0, 1)
    levels = (image[0] * 255).round().to(torch.uint8)
    theirs = F.to_image(F.to_pil_image(levels).filter(ImageFilter.GaussianBlur(2.0))).float()
    ours = Blur(p=1.0).apply(levels[None] / 255, torch.tensor([2.0]))[0] * 255
    inside = (slice(None), slice(8, 24), slice(8, 24))
    assert (ours - theirs)[inside].abs().max() < 4  # of 255: Pillow takes three box filters in place of a Gaussian
    cut = Blur(p=1.0, kernel=0.1).apply(levels[None] / 255, torch.tensor([2.0]))[0] * 255
    assert (cut - theirs)[inside].abs().max() > 10  # a window of three pixels


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_solarize_equals_torchvision_and_kornia(threshold):
    images = random_images()
    ours = Solarize(threshold=threshold).apply(images)
    torch.testing.assert_close(ours, F.solarize(images, threshold), **CLOSE)
    torch.testing.assert_close(ours, kornia.enhance.solarize(images, threshold), **CLOSE)
