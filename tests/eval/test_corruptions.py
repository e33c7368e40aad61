"""The fifteen corruptions: the same for any batch, stronger with the strength, and what each must keep."""

import math

import pytest
import torch
from measuring import evaluate
from tiny import resident

from selfsup.data.base import Splits
from selfsup.errors import UserError
from selfsup.eval import eval_config, raw_pixels
from selfsup.eval.corrupting import CORRUPTIONS, Draws, corrupt, plasma
from selfsup.eval.protocols.corruptions import CorruptedDataset
from selfsup.types import Normalization


def _images(count=6, side=32, channels=3):
    """Smooth images, as photographs are."""
    coarse = torch.rand(count, channels, 5, 5, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(coarse, side, mode="bicubic").clamp(0, 1) * 255).round().to(torch.uint8)


IMAGES, INDEX = _images(), torch.tensor([3, 11, 4, 90, 7, 0])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupted_image_is_a_function_of_its_index_seed_and_strength(name):
    whole = corrupt(IMAGES, name, 3, INDEX)
    assert (whole.dtype, whole.shape) == (torch.uint8, IMAGES.shape)
    assert torch.equal(corrupt(IMAGES[[4, 1]], name, 3, INDEX[[4, 1]]), whole[[4, 1]])
    assert not torch.equal(whole, IMAGES)
    drawn = name not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    for other in (corrupt(IMAGES, name, 3, INDEX + 1), corrupt(IMAGES, name, 3, INDEX, seed=1)):
        assert torch.equal(other, whole) != drawn
    fine = IMAGES if name != "pixelate" else torch.randint(0, 256, IMAGES.shape).to(torch.uint8)
    distances = [(corrupt(fine, name, s, INDEX).float() - fine).square().mean() for s in (1, 5)]
    assert 0 < distances[0] < distances[1] or name == "elastic_transform"  # whose first strength moves the most
    for side, channels in ((9, 1), (40, 4)):
        other = _images(2, side, channels)
        assert corrupt(other, name, 5, torch.arange(2)).shape == other.shape


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast", "pixelate"])
def test_a_plain_image_stays_when_nothing_is_added(name):
    plain = torch.full((2, 3, 32, 32), 77, dtype=torch.uint8)
    assert (corrupt(plain, name, 5, torch.arange(2)).int() - 77).abs().max() <= 1


def test_noise_has_its_variance():
    grey = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)
    at = torch.arange(8)
    share = math.log(64 / 32) / math.log(7)
    std = (1 - share) * 0.04 + share * 0.08
    found = corrupt(grey, "gaussian_noise", 1, at).float() / 255
    assert found.std().item() == pytest.approx(std, rel=0.02)
    assert found.mean().item() == pytest.approx(128 / 255, abs=0.002)
    level = (1 - share) * 500 + share * 60
    shot = corrupt(grey, "shot_noise", 1, at).float() / 255
    assert shot.mean().item() == pytest.approx(128 / 255, abs=0.002)
    assert shot.var().item() == pytest.approx(128 / 255 / level, rel=0.03)  # of a Poisson number
    changed = corrupt(grey, "impulse_noise", 5, at)
    part = (1 - share) * 0.07 + share * 0.27
    for value in (0, 255):
        assert (changed == value).double().mean().item() == pytest.approx(part / 2, rel=0.05)


def test_brightness_and_contrast_are_their_formulas():
    image = torch.tensor([[[[100]], [[50]], [[0]]]], dtype=torch.uint8).expand(1, 3, 32, 32)
    bright = corrupt(image, "brightness", 1, torch.arange(1))[0, :, 0, 0].tolist()
    raised = (100 / 255 + 0.05) * 255
    assert bright == [round(raised), round(raised / 2), 0], "hue and saturation stay"
    two = IMAGES.float() / 255
    expected = (two - two.mean((2, 3), keepdim=True)) * 0.15 + two.mean((2, 3), keepdim=True)
    assert (corrupt(IMAGES, "contrast", 5, INDEX).float() / 255 - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_parameters_are_those_of_the_two_sizes_and_between_them():
    entry = CORRUPTIONS["defocus_blur"]
    assert entry.parameters(4, 32) == [1, 0.2]
    assert entry.parameters(4, 224) == pytest.approx([8, 0.5])
    assert entry.parameters(4, 448) == pytest.approx([16, 0.5])
    assert entry.parameters(4, 16) == [0.5, 0.2]
    middle = entry.parameters(4, round(math.sqrt(32 * 224)))
    assert middle == pytest.approx([4.5, 0.35], rel=0.01)
    for name, strength, message in (("fogg", 1, "there is no 'fogg'. Did you mean 'fog'"), ("fog", 6, "no strength 6")):
        with pytest.raises(UserError, match=message):
            corrupt(IMAGES, name, strength, INDEX)


def test_the_protocol_gives_means_over_strengths_and_corruptions(tmp_path):
    which = torch.arange(60) % 3
    images = torch.randint(0, 40, (60, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    images += 150 * (which[:, None] == torch.arange(3))[:, :, None, None]
    about = {"name": "colours", "image_size": 8, "classes": ("r", "g", "b")}
    data = resident(images.to(torch.uint8), which, normalization=Normalization((0.3,) * 3, (0.2,) * 3), **about)
    part = torch.arange(60).split([36, 9, 15])
    splits = Splits(data.subset(part[0]), data.subset(part[0]), data.subset(part[1]), data.subset(part[2]))
    config = eval_config(
        corruptions={"names": ["brightness", "impulse_noise"], "strengths": [1, 5], "images": 12},
        knn={"k": [3]},
        linear_probe={"learning_rates": [0.1], "weight_decays": [0.0], "epochs": 3},
    )
    records = evaluate(None, splits, config, ["corruptions"], run_dir=tmp_path)
    assert (tmp_path / "figures" / "corruptions.png").exists()
    assert len(records) == 2 * 3
    for classifier in ("knn", "linear_probe"):
        own = {r["corruption"]: r for r in records if r["classifier"] == classifier}
        mean = own.pop("mean of all")
        assert mean["primary"]
        assert mean["clean"] == 1, "the colours are told apart"
        assert mean.value == pytest.approx(sum(r.value for r in own.values()) / 2)
        assert mean["kept"] == mean.value
        for record in own.values():
            assert record.value == pytest.approx(sum(record["of_strengths"]) / 2)
            assert (record["corrupted_images"], record["strengths"]) == (12, [1, 5])
    with pytest.raises(UserError, match=r"eval\.corruptions: there is no rain; names are some of gaussian_noise"):
        evaluate(None, splits, eval_config(corruptions={"names": ["rain"]}), ["corruptions"])


def test_what_is_corrupted_is_what_the_network_sees():
    data = resident(
        _images(3, 20), torch.zeros(3).long(), name="x", image_size=8, normalization=Normalization((0,), (1,))
    )
    changed = CorruptedDataset(data.subset(torch.tensor([2, 0])), 12, "contrast", 1, 0)
    seen = raw_pixels(data.subset(torch.tensor([2, 0])), resize=12).features.view(2, 3, 8, 8)
    expected = corrupt((seen * 255).round().to(torch.uint8), "contrast", 1, torch.tensor([2, 0]))
    assert (changed.read(torch.arange(2)).int() - expected.int()).abs().max() <= 1, "but for rounding"
    noisy = CorruptedDataset(data, None, "gaussian_noise", 5, 0)
    assert torch.equal(noisy.subset(torch.tensor([2])).read(torch.tensor([0])), noisy.read(torch.tensor([2])))


def test_deeper_pixels_are_corrupted_as_those_of_8_bits():
    about = {"name": "x", "image_size": 8, "normalization": Normalization((0,), (1,))}
    pixels = _images(3, 8)
    expected = CorruptedDataset(resident(pixels, **about), None, "contrast", 1, 0).read(torch.arange(3))
    for deep in ((pixels.int() * 257).to(torch.uint16), pixels / 255):
        found = CorruptedDataset(resident(deep, **about), None, "contrast", 1, 0).read(torch.arange(3))
        assert torch.equal(found, expected)


def test_the_jitter_of_fog_falls_by_the_square_of_its_decay_a_level():
    noise = plasma(Draws(0, torch.arange(400)), 32, 1.6)
    left = []
    for step in (16, 8):  # centres of squares, less the mean of their corners, are the jitter alone
        corners = noise[:, ::step, ::step]
        total = corners + corners.roll(-1, 1)
        left.append((noise[:, step // 2 :: step, step // 2 :: step] - (total + total.roll(-1, 2)) / 4).std())
    assert float(left[1] / left[0]) == pytest.approx(1 / 1.6**2, rel=0.1)


def test_grey_of_snow_is_as_bright_as_colours_look():
    red = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    red[:, 0] = 255
    green = red.roll(1, 1)
    paler = [corrupt(images, "snow", 1, torch.tensor([0]))[:, 2].float().mean() for images in (red, green)]
    assert paler[1] > paler[0]
