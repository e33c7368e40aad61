"""Each operation against torchvision's, image by image, and against Kornia's where the two libraries agree."""

import kornia
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from selfsup.augment.crop import Crop
from selfsup.augment.operations import jitter
from selfsup.augment.operations.blur import gaussian_blur
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


def test_blur_refuses_a_kernel_beyond_the_image():
    with pytest.raises(ValueError, match="does not fit"):
        gaussian_blur(torch.zeros(1, 3, 8, 4), torch.ones(1), 9)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_solarize_equals_torchvision_and_kornia(threshold):
    images = random_images()
    ours = Solarize(threshold=threshold).apply(images)
    torch.testing.assert_close(ours, F.solarize(images, threshold), **CLOSE)
    torch.testing.assert_close(ours, kornia.enhance.solarize(images, threshold), **CLOSE)
