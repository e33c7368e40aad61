"""The whole pipeline: against torchvision image by image, and what it promises about seeds, batches and types."""

import dataclasses

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from selfsup.augment import (
    RECIPES,
    AugmentConfig,
    ViewGenerator,
    ViewRecipe,
    build_views,
    fold_in,
    multi_crop,
    two_crop,
)
from selfsup.augment import compiled as compilation
from selfsup.augment.crop import Crop
from selfsup.types import Normalization

IDENTITY = Normalization((0.0,), (1.0,))
COLOR = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


def photographs(count=12, channels=3, size=(40, 48)):
    """Smooth images with some noise, uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")
    noisy = smooth + 0.05 * torch.randn(smooth.shape, generator=generator)
    return (noisy.clamp(0, 1) * 255).to(torch.uint8)


def jitter(view, recipe, order, factors):
    for which in order:
        view = COLOR[which](view, factors[which])
    return view


def blur(view, recipe, sigma):
    return F.gaussian_blur(view, [25, 25], [sigma, sigma])  # six of the largest standard deviation, 2, to each side


THEIRS = {
    "flip": lambda view, recipe: F.horizontal_flip(view),
    "jitter": jitter,
    "gray": lambda view, recipe: F.rgb_to_grayscale(view, 3),
    "blur": blur,
    "solarize": lambda view, recipe: F.solarize(view, recipe.solarize_threshold),
}


def reference_views(images, recipe, seed, size):
    """One view of each image by torchvision's functions, one after the other."""
    boxes, drawn = recipe.draw([seed], torch.arange(len(images)), *images.shape[-2:])
    views = []
    for row, image in enumerate(images / 255):
        mode = InterpolationMode(recipe.interpolation)
        view = F.resized_crop(image, *boxes[row].tolist(), [size, size], interpolation=mode, antialias=True).clamp(0, 1)
        for operation in recipe.operations:
            chosen, parameters = drawn[operation.name]
            if chosen[row]:
                own = {name: value[row].tolist() for name, value in parameters.items()}
                view = THEIRS[operation.name](view, recipe, **own)
        views.append(view)
    return torch.stack(views)


@pytest.mark.parametrize("name", RECIPES)
def test_views_equal_torchvisions_operations(name, monkeypatch):
    monkeypatch.setattr("selfsup.augment.generator.CACHED_VALUES", 20_000)  # two images at a time
    recipes = [recipe for group in RECIPES[name] for recipe in group]
    solarized = ["solarize" in [operation.name for operation in recipe.operations] for recipe in recipes]
    recipes = [
        dataclasses.replace(recipe, solarize_p=0.5) if own else recipe
        for recipe, own in zip(recipes, solarized, strict=True)
    ]
    size = 51
    images = photographs()
    views = ViewGenerator(recipes, [size] * len(recipes), IDENTITY)(images, seed=4)
    for number, (recipe, view) in enumerate(zip(recipes, views, strict=True)):
        expected = reference_views(images, recipe, fold_in(4, number), size)
        torch.testing.assert_close(view.image, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["simclr", "moco_v1", "byol_small"])
def test_views_of_an_image_do_not_depend_on_its_batch(name):
    images = photographs(40, size=(30, 26))
    index = torch.arange(40) * 17 + 5
    generator = two_crop(name, 32)
    whole = generator(images, seed=1, index=index)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for chosen in (order, order[:7], order[:1]):
        for view, expected in zip(generator(images[chosen], seed=1, index=index[chosen]), whole, strict=True):
            assert torch.equal(view.to_source, expected.to_source[chosen])
            torch.testing.assert_close(view.image, expected.image[chosen], rtol=0, atol=5e-6)


def test_views_differ_between_seeds_epochs_indices_and_views():
    image = photographs(1).expand(6, -1, -1, -1)
    generator = two_crop("simclr", 32)
    first = generator(image, seed=0)
    assert len(torch.unique(torch.cat([view.to_source for view in first]), dim=0)) == 12
    same = generator(image, seed=0, index=torch.arange(6))
    assert all(torch.equal(a.image, b.image) for a, b in zip(first, same, strict=True))
    for other in (generator(image, seed=1), generator(image, seed=fold_in(0, 1))):
        assert (other[0].to_source - first[0].to_source).abs().amax(dim=(1, 2)).min() > 0
    stepped = generator(image, seed=0, step=3)  # no extra operation reads it
    assert torch.equal(stepped[1].image, first[1].image)


def test_without_a_seed_every_call_draws_anew_and_torch_repeats_it():
    images = photographs(4)
    make = two_crop("simclr", 32)
    torch.manual_seed(3)
    first, second = make(images), make(images)
    assert (first[0].to_source - second[0].to_source).abs().amax(dim=(1, 2)).min() > 0
    torch.manual_seed(3)
    assert all(torch.equal(a.image, b.image) for a, b in zip(make(images), first, strict=True))
    before = torch.get_rng_state()
    make(images, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_uint8_and_float_images_agree():
    images = photographs()
    generator = two_crop("byol", 32)
    for exact, scaled in zip(generator(images, seed=0), generator(images / 255, seed=0), strict=True):
        assert exact.image.dtype == torch.float32
        torch.testing.assert_close(exact.image, scaled.image, rtol=0, atol=1e-6)
    halves = generator((images / 255).half())
    assert halves[0].image.dtype == torch.float32


def test_autocast_changes_nothing():
    images = photographs()
    generator = two_crop("simclr", 32)
    expected = generator(images, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        views = generator(images, seed=0)
    assert all(torch.equal(a.image, b.image) for a, b in zip(views, expected, strict=True))


def test_images_are_left_as_they_are_and_carry_no_gradient():
    images = (photographs() / 255).requires_grad_()
    before = images.detach().clone()
    views = two_crop("byol", 40)(images, seed=0)
    assert torch.equal(images, before)
    assert not any(view.image.requires_grad for view in views)


def test_normalization():
    images = photographs(4)
    statistics = Normalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    plain = multi_crop("simclr", [24], [2], IDENTITY)(images, seed=0)
    normalised = multi_crop("simclr", [24], [2], statistics)(images, seed=0)
    for raw, view in zip(plain, normalised, strict=True):
        assert raw.image.min() >= 0
        assert raw.image.max() <= 1
        torch.testing.assert_close(view.image, F.normalize(raw.image, statistics.mean, statistics.std))


def test_one_channel():
    images = photographs(6, channels=1)
    recipe = ViewRecipe(jitter_p=1.0, gray_p=1.0, saturation=0.9, hue=0.5, brightness=0.0, contrast=0.0)
    plain = dataclasses.replace(recipe, jitter_p=0.0, gray_p=0.0)
    colored, expected = (ViewGenerator([r], [32])(images, seed=0)[0].image for r in (recipe, plain))
    assert colored.shape == (6, 1, 32, 32)
    assert torch.equal(colored, expected)
    # three statistics meet one channel as their mean
    mean, std = (0.485 + 0.456 + 0.406) / 3, (0.229 + 0.224 + 0.225) / 3
    raw = ViewGenerator([plain], [32], IDENTITY)(images, seed=0)[0].image
    torch.testing.assert_close(expected, (raw - mean) / std)


@pytest.mark.parametrize("compiled", [False, True])
def test_views_made_in_one_pass_equal_views_made_one_by_one(compiled, monkeypatch):
    images = photographs(5)
    # without jitter, which takes ten seconds to compile
    config = AugmentConfig(
        "swav", sizes=[32, 12], counts=[2, 3], operations=["flip", "gray", "blur"], override={"gray_p": 0.5}
    )
    generator = build_views(config, 32, IDENTITY)
    generator.compiled = compiled
    compilation._function.cache_clear()
    torch._dynamo.utils.counters.clear()
    passes = []
    apply = Crop.apply
    monkeypatch.setattr(Crop, "apply", lambda *args: passes.append(1) or apply(*args))
    together = generator(images, seed=2)
    assert len(passes) == 2
    for most, expected in ((2 * images.numel(), 3), (0, 5)):  # 2 and 2 and 1 view; each alone
        passes.clear()
        monkeypatch.setattr("selfsup.augment.generator.VALUES_TOGETHER", most)
        apart = generator(images, seed=2)
        assert len(passes) == expected
        for one, other in zip(together, apart, strict=True):
            torch.testing.assert_close(one.image, other.image, rtol=0, atol=5e-6)
            assert torch.equal(one.to_source, other.to_source)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (2 if compiled else 0)  # one a size


def test_views_of_no_image():
    views = multi_crop("swav", (32, 12), (2, 1))(photographs(5)[:0])
    assert [tuple(view.image.shape) for view in views] == [(0, 3, 32, 32)] * 2 + [(0, 3, 12, 12)]


def test_multi_crop_sizes_and_counts():
    views = multi_crop("swav", (32, 12), (2, 3))(photographs(5))
    assert [tuple(view.image.shape) for view in views] == [(5, 3, 32, 32)] * 2 + [(5, 3, 12, 12)] * 3
    areas = [view.to_source[:, 0, 0].abs() * view.to_source[:, 1, 1] for view in views]
    assert all(area.max() < 0.2 for area in areas[2:])
    assert max(area.max() for area in areas[:2]) > 0.2
    assert not list(multi_crop().parameters())


@pytest.mark.parametrize("field", ["flip_p", "jitter_p", "gray_p", "blur_p", "solarize_p"])
def test_each_operation_is_applied_always_or_never(field):
    nothing = ViewRecipe(
        scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_p=0.0, jitter_p=0.0, gray_p=0.0, brightness=0.9, saturation=0.9
    )
    images = photographs(20, size=(32, 32))
    never = ViewGenerator([nothing], [32], IDENTITY)(images, seed=0)[0].image
    torch.testing.assert_close(never, images / 255)
    always = ViewGenerator([dataclasses.replace(nothing, **{field: 1.0})], [32], IDENTITY)(images, seed=0)[0].image
    assert (always - never).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize(
    ("images", "index", "message"),
    [
        (torch.zeros(3, 8, 8), None, "B,C,H,W"),
        (torch.zeros(2, 8, 8), None, r"\[B,C,H,W\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), None, "uint8"),
        (torch.zeros(2, 3, 8, 8), torch.arange(3), r"index must be int64 .*\(2\)"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2), "index must be int64"),
    ],
)
def test_wrong_inputs_are_refused(images, index, message):
    with pytest.raises(ValueError, match=message):
        two_crop("simclr", 8)(images, index=index)


def test_an_empty_batch_gives_empty_views():
    views = two_crop("byol", 16)(torch.zeros(0, 3, 8, 8))
    assert [tuple(view.image.shape) for view in views] == [(0, 3, 16, 16)] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_views_on_cuda_equal_those_on_the_cpu():
    images = photographs()
    generator = two_crop("byol", 40)
    for ours, expected in zip(generator(images.cuda(), seed=2), generator(images, seed=2), strict=True):
        assert ours.image.is_cuda
        assert torch.equal(ours.to_source.cpu(), expected.to_source)
        torch.testing.assert_close(ours.image.cpu(), expected.image, rtol=0, atol=1e-4)
