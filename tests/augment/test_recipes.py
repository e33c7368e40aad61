"""The recipes against the papers' tables, and the mistakes a person can make."""

import dataclasses
from functools import partial

import pytest

from selfsup.augment import RECIPES, AugmentConfig, ViewRecipe, build_views
from selfsup.augment.recipes import view_recipes
from selfsup.config import load_config
from selfsup.errors import UserError
from selfsup.types import Normalization

GRAY_STATISTICS = Normalization((0.5,), (0.25,))

# scale, interpolation, (brightness, contrast, saturation, hue), jitter, gray, blur, solarize: of every view in turn
TABLE = {
    "simclr": [((0.08, 1.0), "bicubic", (0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5, 0.0)],
    "moco_v1": [((0.2, 1.0), "bilinear", (0.4, 0.4, 0.4, 0.4), 1.0, 0.2, 0.0, 0.0)],
    "moco_v2": [((0.2, 1.0), "bilinear", (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, 0.0)],
    "ressl": [  # the authors' moco_aug and target_aug, at 4d67daa
        ((0.2, 1.0), "bilinear", (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, 0.0),
        ((0.2, 1.0), "bilinear", (0.4, 0.4, 0.4, 0.1), 0.0, 0.0, 0.0, 0.0),
    ],
    "byol": [
        ((0.08, 1.0), "bicubic", (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 1.0, 0.0),
        ((0.08, 1.0), "bicubic", (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.1, 0.2),
    ],
    "swav": [
        ((0.14, 1.0), "bilinear", (0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5, 0.0),
        ((0.05, 0.14), "bilinear", (0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5, 0.0),
    ],
    "dino": [
        ((0.4, 1.0), "bicubic", (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 1.0, 0.0),
        ((0.4, 1.0), "bicubic", (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.1, 0.2),
        ((0.05, 0.4), "bicubic", (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.5, 0.0),
    ],
    "lejepa": [
        ((0.3, 1.0), "bilinear", (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.5, 0.2),
        ((0.05, 0.3), "bilinear", (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.5, 0.2),
    ],
    "msn": [
        ((0.3, 1.0), "bilinear", (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, 0.0),
        ((0.05, 0.3), "bilinear", (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, 0.0),
    ],
    "simclr_small": [((0.08, 1.0), "bicubic", (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.0, 0.0)],
    "moco_v2_small": [((0.08, 1.0), "bilinear", (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.0, 0.0)],
    "byol_small": [
        ((0.08, 1.0), "bicubic", (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.0, 0.0),
        ((0.08, 1.0), "bicubic", (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.0, 0.2),
    ],
}


@pytest.mark.parametrize("name", TABLE)
def test_recipes_hold_the_papers_values(name):
    views = [view for group in RECIPES[name] for view in group]
    for view, expected in zip(views, TABLE[name], strict=True):
        jitter = (view.brightness, view.contrast, view.saturation, view.hue)
        values = (view.scale, view.interpolation, jitter, view.jitter_p, view.gray_p, view.blur_p, view.solarize_p)
        assert values == expected
        assert view.flip_p == 0.5
        colours = [o.name for o in view.operations if o.name in ("jitter", "gray")]
        assert colours == (["gray", "jitter"] if name == "moco_v1" else ["jitter", "gray"])


def test_no_recipe_but_the_byol_preset_adds_brightness_and_none_cuts_its_blur():
    views = [view for groups in RECIPES.values() for group in groups for view in group]
    of_colours = [view for view in views if {"jitter", "blur"} <= {o.name for o in view.operations}]
    assert {(view.brightness_added, view.blur_kernel) for view in of_colours} == {(False, 0.0)}
    config = load_config(["experiment=imagenet/byol", "data.root=."])
    preset = build_views(config.augment, 224, GRAY_STATISTICS).recipes
    assert [view.brightness_added for view in preset] == [True, True]
    assert [dataclasses.replace(view, brightness_added=False) for view in preset] == view_recipes("byol", [2])


def test_every_recipe_of_two_views_has_a_small_version():
    one_view = {"mae", "simmim", "data2vec", "ijepa", "capi"}  # the papers' crops suit any size
    large = {name for name in RECIPES if not name.endswith("_small")} - one_view
    assert {name.removesuffix("_small") for name in RECIPES if name.endswith("_small")} == large


def test_views_of_a_group_take_turns():
    first, second = RECIPES["byol"][0]
    assert view_recipes("byol", [3]) == [first, second, first]
    large, small = RECIPES["swav"][0][0], RECIPES["swav"][1][0]
    assert view_recipes("swav", [2, 3]) == [large, large, small, small, small]


@pytest.mark.parametrize(
    ("config", "image_size", "expected"),
    [
        (AugmentConfig("byol"), 32, "byol_small"),
        (AugmentConfig("byol"), 64, "byol_small"),
        (AugmentConfig("byol"), 65, "byol"),
        (AugmentConfig("byol", small=False), 32, "byol"),
        (AugmentConfig("byol", small=True), 224, "byol_small"),
        (AugmentConfig("byol_small"), 32, "byol_small"),
        (AugmentConfig("byol_small"), 224, "byol_small"),
    ],
)
def test_the_image_size_selects_the_small_version(config, image_size, expected):
    views = build_views(config, image_size, GRAY_STATISTICS)
    assert views.recipes == RECIPES[expected][0]
    assert views.sizes == (image_size, image_size)


@pytest.mark.parametrize(("image_size", "local"), [(224, 96), (32, 14), (112, 48)])
@pytest.mark.parametrize("recipe", ["swav", "dino"])
def test_local_crops_are_three_sevenths_of_the_image(recipe, image_size, local):
    views = build_views(AugmentConfig(recipe, counts=[2, 3]), image_size, GRAY_STATISTICS)
    assert views.sizes == (image_size, image_size, local, local, local)
    one_size = build_views(AugmentConfig(recipe, counts=[2]), image_size, GRAY_STATISTICS)
    assert one_size.sizes == (image_size, image_size)


def test_local_override_reaches_the_second_size_only():
    """And wins over ``override`` there."""
    recipes = view_recipes("swav", [2, 3], {"hue": 0.1, "scale": [0.5, 1.0]}, {"scale": [0.1, 0.3]})
    assert [recipe.scale for recipe in recipes] == [(0.5, 1.0)] * 2 + [(0.1, 0.3)] * 3
    assert {recipe.hue for recipe in recipes} == {0.1}


def test_override_replaces_values_in_every_view():
    views = build_views(
        AugmentConfig("swav", False, [64, 32], [2, 2], {"blur_p": 0, "ratio": [0.5, 2.0]}), 64, GRAY_STATISTICS
    )
    assert [view.blur_p for view in views.recipes] == [0] * 4
    assert [view.ratio for view in views.recipes] == [(0.5, 2.0)] * 4
    assert [view.scale[1] for view in views.recipes] == [1.0, 1.0, 0.14, 0.14]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (partial(AugmentConfig, "simcrl"), "Did you mean 'simclr'"),
        (partial(AugmentConfig, override={"blurp": 0.0}), "Did you mean 'blur_p'"),
        (partial(AugmentConfig, override={"blur_p": 1.5}), "blur_p is 1.5"),
        (partial(AugmentConfig, local_override={"scales": [0.1, 0.2]}), r"augment\.local_override.*'scale'"),
        (partial(AugmentConfig, override={"hue": 0.6}), "hue is 0.6"),
        (partial(AugmentConfig, override={"hue": "much"}), "hue is 'much'"),
        (partial(AugmentConfig, override={"scale": [0.5]}), "scale is"),
        (partial(AugmentConfig, override={"scale": [0.9, 0.1]}), "scale is"),
        (partial(AugmentConfig, override={"interpolation": "nearest"}), "one of bilinear, bicubic"),
        (partial(AugmentConfig, override={"gray_before_jitter": 1}), "true or false"),
        (partial(AugmentConfig, sizes=[32, 16]), "augment.counts 1"),
        (partial(AugmentConfig, sizes=[], counts=[]), "augment.sizes"),
        (partial(AugmentConfig, counts=[0]), "at least 1"),
        (partial(AugmentConfig, "simclr", sizes=[32, 16], counts=[2, 2]), "swav"),
        (partial(AugmentConfig, "swav", counts=[2, 2, 2]), "one per size"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(UserError, match=message):
        build_views(config(), 32, GRAY_STATISTICS)


def test_recipe_fields_are_checked_in_python_too():
    with pytest.raises(UserError, match="solarize_threshold"):
        ViewRecipe(solarize_threshold=2.0)
