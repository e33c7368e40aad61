"""Operations in any order, some of them, and of a user's own: what is drawn, what is done, and what is refused."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from test_view_generator import IDENTITY, photographs, reference_views

from selfsup.augment import (
    OPERATIONS,
    RECIPES,
    AugmentConfig,
    Operation,
    ViewGenerator,
    ViewRecipe,
    build_views,
    colors_left_out,
    fold_in,
    operation,
    operations,
)
from selfsup.augment.compiled import one_pass
from selfsup.errors import UserError
from selfsup.settings import setting

OFTEN = {"flip_p": 0.5, "jitter_p": 0.5, "gray_p": 0.5, "blur_p": 0.5, "solarize_p": 0.5, "solarize_threshold": 0.4}


@pytest.fixture
def tint():
    """An operation of a user's own, for which each image draws two numbers."""

    @operation("tint")
    class Tint(Operation):
        """Move each channel toward one value."""

        numbers: ClassVar[int] = 2
        needs_color: ClassVar[bool] = True

        strength: tuple[float, float] = setting((0.2, 0.4), least=0, most=1)

        def parameters(self, u):
            return {"amount": self.strength[0] + u[:, 0], "value": u[:, 1]}

        def apply(self, images, amount, value):
            return torch.lerp(images, value[:, None, None, None], amount[:, None, None, None].clamp(max=1))

    yield Tint
    OPERATIONS.pop("tint")


def test_each_file_of_the_folder_is_an_operation_of_its_name():
    files = {path.stem for path in Path(operations.__file__).parent.glob("*.py")} - {"__init__"}
    own = {name for name, kind in OPERATIONS.items() if kind.__module__ == f"{operations.__name__}.{name}"}
    assert files == own
    slots = [slot for kind in (type(RECIPES["simclr"][0][0].crop), *OPERATIONS.values()) for slot in kind.slots]
    assert len(slots) == len(set(slots)), "no number is drawn for two of them"


@pytest.mark.parametrize(
    "order",
    [
        ["blur", "solarize", "gray", "flip", "jitter"],
        ["solarize", "jitter", "blur", "gray", "flip"],
        ["gray", "jitter"],
        ["blur"],
        [],
    ],
)
def test_views_equal_torchvisions_operations_in_any_order(order):
    images = photographs()
    often = {key: value for key, value in OFTEN.items() if key.split("_")[0] in order}
    config = AugmentConfig("simclr", counts=[1], sizes=[33], operations=order, override=often)
    generator = build_views(config, 33, IDENTITY)
    (recipe,) = generator.recipes
    assert [o.name for o in recipe.operations] == order
    view = generator(images, seed=6)[0]
    torch.testing.assert_close(view.image, reference_views(images, recipe, fold_in(6, 0), 33), rtol=0, atol=1e-4)


def test_what_an_operation_draws_does_not_depend_on_the_others(tint):
    whole = ViewRecipe(**OFTEN).draw([3], torch.arange(9), 20, 20)[1]
    box, some = ViewRecipe(["blur", "tint", "jitter"], blur_p=0.5, jitter_p=0.5).draw([3], torch.arange(9), 20, 20)
    assert torch.equal(box, ViewRecipe().draw([3], torch.arange(9), 20, 20)[0])
    for name in ("blur", "jitter"):
        assert torch.equal(some[name].chosen, whole[name].chosen)
        assert all(torch.equal(value, whole[name].parameters[key]) for key, value in some[name].parameters.items())
    alone = ViewRecipe(["tint"]).draw([3], torch.arange(9), 20, 20)[1]["tint"].parameters
    assert all(torch.equal(value, alone[key]) for key, value in some["tint"].parameters.items())
    assert len(torch.cat([alone["amount"] - 0.2, alone["value"]]).unique()) == 18


def test_operations_of_ones_own_draw_from_numbers_of_their_own(tint):
    @operation("shade")
    class Shade(Operation):
        """Does nothing; draws one number."""

        numbers: ClassVar[int] = 1

    try:
        given = [slot for kind in OPERATIONS.values() for slot in kind.slots]
        assert len(given) == len(set(given))
    finally:
        OPERATIONS.pop("shade")


def test_ones_own_stands_anywhere_in_the_order(tint):
    images = photographs(6, size=(40, 40))
    override = {"tint_p": 1.0, "tint_strength": [0.5, 0.5], "solarize_p": 1, "scale": [1, 1], "ratio": [1, 1]}

    def solarized(x):
        return torch.where(x >= 0.5, 1 - x, x)

    def tinted(x):
        (recipe,) = generator.recipes
        return tint().apply(x, **recipe.draw([fold_in(1, 0)], torch.arange(6), 40, 40)[1]["tint"].parameters)

    for order, expected in (
        (["tint", "solarize"], lambda x: solarized(tinted(x))),
        (["solarize", "tint"], lambda x: tinted(solarized(x))),
    ):
        config = AugmentConfig(counts=[1], sizes=[40], operations=order, override=override)
        generator = build_views(config, 40, IDENTITY)
        torch.testing.assert_close(generator(images, seed=1)[0].image, expected(images / 255), rtol=0, atol=1e-4)


def test_an_operation_for_colours_leaves_images_without_as_they_are(tint):
    images = photographs(2, channels=1)
    with_it, without = (build_views(AugmentConfig(operations=o), 32, IDENTITY) for o in (["flip", "tint"], ["flip"]))
    for one, other in zip(with_it(images, seed=0), without(images, seed=0), strict=True):
        assert torch.equal(one.image, other.image)
    assert colors_left_out(with_it, 1) == ["tint"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"operations": ["solarise"]},
            "augment.operations: there is no operation 'solarise'.* Did you mean 'solariz",
        ),
        ({"operations": ["crop", "flip"]}, "the crop, which always comes first"),
        ({"operations": ["flip", "gray", "flip"]}, "augment.operations: 'flip' is named twice"),
        ({"override": {"tint_p": 1}}, "augment.override.tint_p: augment.operations must name 'tint'"),
        ({"operations": ["tint"], "override": {"tint_p": 2}}, "tint_p is 2; it must be a number, at least 0 and at mo"),
        ({"operations": ["tint"], "override": {"tint_strength": [0.4, 0.2]}}, "it must be a pair, low and high"),
        ({"operations": ["tint"], "override": {"tint_strength": [0.4, 2.0]}}, "it must be a pair.*at most 1"),
    ],
)
def test_mistakes_are_sentences(settings, message, tint):
    with pytest.raises(UserError, match=message):
        build_views(AugmentConfig(**settings), 32, IDENTITY)


def test_a_name_is_taken_once(tint):
    with pytest.raises(UserError, match="'blur' is already taken"):
        operation("blur")(tint)


def test_what_does_nothing_is_noted():
    config = AugmentConfig(operations=["solarize", "flip"], override={"hue": 0.3, "blur_p": 1.0, "scale": [0.5, 1.0]})
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        (first, _) = build_views(config, 32, IDENTITY).recipes
    assert [str(note.message) for note in notes] == [
        "augment.override is not used for hue, blur_p, as augment.operations leaves their operations out.",
        "augment.operations: the probability of solarize is 0; augment.override.solarize_p sets it.",
    ]
    assert first.crop.scale == (0.5, 1.0)


@pytest.mark.parametrize(
    ("recipe", "first", "order"),
    [
        ("simclr", True, ["flip", "gray", "jitter", "blur", "solarize"]),
        ("moco_v1", False, ["flip", "jitter", "gray", "blur", "solarize"]),
    ],
)
def test_the_old_key_means_an_order(recipe, first, order):
    with pytest.warns(UserWarning, match=f"gray_before_jitter is augment.operations=.{', '.join(order)}. now") as notes:
        old = build_views(AugmentConfig(recipe, override={"gray_before_jitter": first}), 32, IDENTITY)
    assert len(notes) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*the probability of")
        new = build_views(AugmentConfig(recipe, operations=order), 32, IDENTITY)
    assert old.recipes == new.recipes
    assert [o.name for o in new.recipes[0].operations] == order
    assert replace(RECIPES[f"{recipe}_small"][0][0], gray_before_jitter=first) == new.recipes[0]


@pytest.mark.parametrize(
    ("order", "runs"),
    [
        (["jitter", "blur", "gray"], [["jitter"], ["gray"]]),
        (["flip", "gray", "jitter", "solarize"], [["gray", "jitter"]]),
    ],
)
def test_neighbours_are_compiled_together_and_others_apart(order, runs, monkeypatch):
    """With the pass that is compiled elsewhere run as it is."""
    images, made = photographs(7, size=(16, 16)), []

    def whole_pass(image, together, drawn):
        made.append([o.name for o in together])
        return one_pass(tuple(o.on_planes for o in together))(image, *(o.lay_out(drawn[o.name]) for o in together))

    monkeypatch.setattr("selfsup.augment.generator.compiled_pass", whole_pass)
    recipe = ViewRecipe(order, jitter_p=1, gray_p=0.5)
    eager, compiled = (ViewGenerator([recipe], [16], IDENTITY, compiled=c)(images, seed=2)[0] for c in (False, True))
    assert made == runs
    torch.testing.assert_close(eager.image, compiled.image, rtol=0, atol=1e-5)
