"""Kornia augmentations by name: what is built, how it is seeded, and the mistakes a person can make."""

import kornia.augmentation
import pytest
import torch

from selfsup.augment import AugmentConfig, ViewGenerator, ViewRecipe, build_views
from selfsup.errors import UserError
from selfsup.types import Normalization

IDENTITY = Normalization((0.0,), (1.0,))
WHOLE = ViewRecipe(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_p=0.0, jitter_p=0.0, gray_p=0.0)
NOISE = [{"name": "RandomGaussianNoise", "params": {"p": 1.0, "std": 0.1}}]
IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_augmentation_acts_before_normalisation():
    statistics = Normalization((0.5,), (0.1,))
    extra = [{"name": "RandomInvert", "params": {"p": 1.0}}]
    view = ViewGenerator([WHOLE], [16], statistics, extra)(IMAGES, seed=0)[0]
    inverted = kornia.augmentation.RandomInvert(p=1.0)(IMAGES, seed=0)
    torch.testing.assert_close(view.image, (inverted - 0.5) / 0.1)


def test_augmentations_act_in_order():
    solarize = {"name": "RandomSolarize", "params": {"p": 1.0, "thresholds": [0.3, 0.3], "additions": [0.0, 0.0]}}
    double = {"name": "RandomBrightness", "params": {"p": 1.0, "brightness": [1.5, 1.5]}}
    first = ViewGenerator([WHOLE], [16], IDENTITY, [solarize, double])(IMAGES, seed=0)[0].image
    second = ViewGenerator([WHOLE], [16], IDENTITY, [double, solarize])(IMAGES, seed=0)[0].image
    inverted = torch.where(IMAGES < 0.3, IMAGES, 1 - IMAGES)
    brighter = (IMAGES + 0.5).clamp(0, 1)
    torch.testing.assert_close(first, (inverted + 0.5).clamp(0, 1))
    torch.testing.assert_close(second, torch.where(brighter < 0.3, brighter, 1 - brighter))


def test_draws_depend_on_seed_step_and_view_and_leave_the_global_state():
    generator = ViewGenerator([WHOLE, WHOLE], [16, 16], IDENTITY, NOISE)
    state = torch.get_rng_state()
    first, second = (view.image for view in generator(IMAGES, seed=1, step=5))
    torch.rand(3)
    again = generator(IMAGES, seed=1, step=5)[0].image
    torch.set_rng_state(state)
    assert torch.equal(torch.get_rng_state(), state)
    generator(IMAGES, seed=1, step=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    for other in (second, generator(IMAGES, seed=1, step=6)[0].image, generator(IMAGES, seed=2, step=5)[0].image):
        assert (other - first).abs().mean() > 0.01


def test_an_empty_list_adds_nothing():
    plain = build_views(AugmentConfig(extra=[]), 16, IDENTITY)
    assert len(plain.extra) == 0
    expected = build_views(AugmentConfig(), 16, IDENTITY)(IMAGES, seed=0)
    assert all(torch.equal(a.image, b.image) for a, b in zip(plain(IMAGES, seed=0), expected, strict=True))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "RandomErasng"}, r"extra\[0\]\.name: .* Did you mean 'RandomErasing'"),
        ({"name": "RandomMixUpV2"}, "no 2D augmentation"),
        ({"name": "AugmentationBase2D"}, "no 2D augmentation"),
        ({"name": "RandomErasing", "params": {"sclae": 0.5}}, r"params: RandomErasing refuses them: .*sclae"),
        ({"name": "RandomRotation"}, "params: RandomRotation refuses them: .*degrees"),
        ({"params": {}}, "it takes the keys 'name'"),
        ({"name": "RandomErasing", "p": 0.5}, "it takes the keys 'name'"),
        ("RandomErasing", "it takes the keys 'name'"),
        ({"name": "RandomErasing", "params": 0.5}, "params is 0.5"),
    ],
)
def test_mistakes_in_extra_are_named(entry, message):
    with pytest.raises(UserError, match=message):
        build_views(AugmentConfig(extra=[entry]), 32, IDENTITY)
