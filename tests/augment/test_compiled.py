"""Compiled colour: the same views, compiled once, and eager views where nothing can be compiled."""

import dataclasses
import itertools
import logging
import shutil

import pytest
import torch
from test_view_generator import IDENTITY, photographs, reference_views

from selfsup.augment import AugmentConfig, ViewGenerator, ViewRecipe, build_views, compiled, fold_in
from selfsup.augment.base import Drawn
from selfsup.augment.compiled import one_pass
from selfsup.augment.generator import perform
from selfsup.augment.operations.jitter import HUE, SEQUENCE

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
RECIPE = ViewRecipe(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)


@pytest.fixture(autouse=True)
def forget_what_is_compiled():
    compiled._function.cache_clear()
    torch._dynamo.reset()
    yield
    compiled._function.cache_clear()


def drawn_in(orders):
    """What jitter and grey draw for 24 images, every one jittered in one of the given orders."""
    jitter, gray = RECIPE.operations[1:3]
    _, drawn = RECIPE.draw([5], torch.arange(24), 20, 20)
    order = torch.tensor(orders).repeat(24 // len(orders), 1)
    parameters = {"order": order, "factors": drawn["jitter"].parameters["factors"]}
    return jitter, Drawn(torch.ones(24, dtype=torch.bool), parameters), gray, drawn["gray"]


def test_the_sequence_of_steps_holds_every_order():
    orders = list(itertools.permutations(range(4)))
    jitter, drawn, _, _ = drawn_in(orders)
    neutral = torch.tensor([0.0 if which == HUE else 1.0 for which in SEQUENCE])
    for order, row, own in zip(orders, jitter.lay_out(drawn), drawn.parameters["factors"], strict=True):
        steps = (row != neutral).nonzero().squeeze(1).tolist()
        assert tuple(SEQUENCE[step] for step in steps) == order
        assert row[steps].tolist() == own[list(order)].tolist()


def test_images_without_jitter_get_neutral_factors_and_stay_as_they_are():
    jitter, drawn, gray, _ = drawn_in([(0, 1, 2, 3)])
    nothing = torch.zeros(24, dtype=torch.bool)
    images = torch.rand(24, 3, 9, 11)
    for how in (jitter, dataclasses.replace(jitter, brightness_added=True)):
        whole = one_pass((how.on_planes, gray.on_planes))
        assert torch.equal(whole(images, how.lay_out(drawn._replace(chosen=nothing)), nothing), images)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("gray_first", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_all_steps_in_one_pass_equal_the_operations_one_by_one(channels, gray_first, added):
    """On every order of the operations; eager is what is tested against torchvision and Kornia."""
    jitter, drawn, gray, grayed = drawn_in(list(itertools.permutations(range(4))))
    jitter = dataclasses.replace(jitter, brightness_added=added)
    drawn.parameters["factors"][:, 0] -= float(added)
    assert set(grayed.chosen.tolist()) == {True, False}
    images = photographs(24, channels, (20, 20)) / 255
    pair = [(jitter, drawn), (gray, grayed)][:: -1 if gray_first else 1]
    once = one_pass(tuple(o.on_planes for o, _ in pair))(images, *(o.lay_out(own) for o, own in pair))
    eager = images.clone()
    for operation, own in pair:
        perform(operation, own, eager, torch.zeros(24, 2, 3))
    torch.testing.assert_close(once, eager, rtol=0, atol=5e-6)


@needs_compiler
@pytest.mark.slow
def test_compiled_views_equal_torchvisions_and_compile_once():
    recipe = dataclasses.replace(RECIPE, blur_p=0.5, solarize_p=0.5)
    size, images = 33, photographs(12)
    generator = ViewGenerator([recipe, recipe], [size, size], IDENTITY, compiled=True)
    torch._dynamo.utils.counters.clear()
    for number, view in enumerate(generator(images, seed=4)):
        expected = reference_views(images, recipe, fold_in(4, number), size)
        torch.testing.assert_close(view.image, expected, rtol=0, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    # other images, draws, epochs and numbers of images
    generator(images.flip(0), seed=fold_in(4, 1), index=torch.arange(100, 112))
    first, again = (generator(images[:7], seed=9) for _ in range(2))
    generator(images[:2])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert all(torch.equal(a.image, b.image) for a, b in zip(first, again, strict=True))
    # a batch of one is made eagerly
    (alone, _), (among, _) = generator(images[:1], seed=9), first
    torch.testing.assert_close(alone.image[0], among.image[0], rtol=0, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_without_a_working_compiler_views_are_eager_and_a_line_says_so(caplog):
    images = photographs(6)
    config = AugmentConfig("byol", compile=True, operations=["flip", "gray"])  # jitter takes ten seconds to compile
    generator = build_views(config, 32, IDENTITY)
    expected = build_views(dataclasses.replace(config, compile=False), 32, IDENTITY)(images, seed=0)
    # by torch's own patch: pytest's undo would hide the second setting for the rest of the process
    broken = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True})
    with broken, caplog.at_level(logging.WARNING):
        first, second = generator(images, seed=0), generator(images, seed=0)
    for views in (first, second):
        assert all(torch.equal(a.image, b.image) for a, b in zip(views, expected, strict=True))
    lines = [record.getMessage() for record in caplog.records if record.name == "selfsup.augment.compiled"]
    assert len(lines) == 1
    assert "without compiled code" in lines[0]
    assert "\n" not in lines[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiled_views_on_cuda_equal_eager_views_on_the_cpu():
    images = photographs()
    config = AugmentConfig("byol", small=False)
    expected = build_views(config, 40, IDENTITY)(images, seed=2)
    ours = build_views(dataclasses.replace(config, compile=True), 40, IDENTITY)(images.cuda(), seed=2)
    for view, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(view.image.cpu(), other.image, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("images", "setting", "expected"),
    [
        (10**6, None, True),
        (10**5, None, False),
        (0, None, False),
        (10**7, False, False),
        (1, True, True),
    ],
)
def test_a_training_compiles_when_it_is_long_enough_to_win_the_time_back(images, setting, expected):
    config = AugmentConfig(counts=[2], sizes=[32], compile=setting)  # 2048 pixels of views an image
    assert build_views(config, 32, IDENTITY, images).compiled is expected
