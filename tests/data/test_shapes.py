import itertools
import math

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Polygon

from selfsup.data import load_splits
from selfsup.data.sources import shapes
from selfsup.data.sources.shapes import CLASSES, TEST_START, ShapesConfig, draw_scenes
from selfsup.errors import UserError


@pytest.mark.parametrize(("size", "objects"), [(32, 1), (45, 1), (45, 3)])
def test_a_scene_does_not_depend_on_its_batch(size, objects):
    index = torch.arange(150)
    whole = draw_scenes(index, 3, size, objects)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    shuffled = draw_scenes(order, 3, size, objects)
    alone = [draw_scenes(index[i : i + 1], 3, size, objects) for i in range(0, 150, 7)]
    for part in range(3):
        assert torch.equal(whole[part][order], shuffled[part])
        assert torch.equal(whole[part][::7], torch.cat([scene[part] for scene in alone]))


def test_another_seed_or_index_gives_another_scene():
    images = torch.cat([draw_scenes(torch.arange(200), seed, 32)[0] for seed in (0, 1)]).flatten(1)
    assert len(images.unique(dim=0)) == 400


@pytest.mark.parametrize("size", [32, 64, 96])
def test_shapes_and_types(size):
    images, labels, masks = draw_scenes(torch.arange(40), 0, size)
    assert (images.shape, images.dtype) == ((40, 3, size, size), torch.uint8)
    assert (labels.shape, labels.dtype) == ((40,), torch.int64)
    assert (masks.shape, masks.dtype) == ((40, size, size), torch.uint8)
    for mask, label in zip(masks, labels, strict=True):
        assert set(mask.unique().tolist()) == {0, int(label) + 1}
        assert 0.02 < (mask > 0).float().mean() < 0.7


def test_the_same_scene_at_every_size():
    small, labels, _ = draw_scenes(torch.arange(30), 0, 32)
    large, labels_large, masks = draw_scenes(torch.arange(30), 0, 160)
    assert torch.equal(labels, labels_large)
    pooled = torch.nn.functional.avg_pool2d(large.float(), 5)
    away = torch.nn.functional.max_pool2d((masks > 0).float()[:, None], 5)  # object edges: own test below
    inside = -torch.nn.functional.max_pool2d(-(masks > 0).float()[:, None], 5)
    level = (away == inside).expand_as(pooled)
    assert (pooled - small)[level].abs().mean() < 6


def test_edges_are_antialiased():
    small, _, _ = draw_scenes(torch.arange(100), 0, 32)
    large, _, masks = draw_scenes(torch.arange(100), 0, 160)
    covered = torch.nn.functional.avg_pool2d((masks > 0).float()[:, None], 5)
    edge = ((covered > 0.2) & (covered < 0.8)).expand(-1, 3, -1, -1)
    truth = torch.nn.functional.avg_pool2d(large.float(), 5)
    hard = large[..., 2::5, 2::5].float()  # one sample in the middle of each pixel
    assert (small - truth)[edge].abs().mean() < 0.5 * (hard - truth)[edge].abs().mean()


def test_only_the_object_depends_on_the_class(monkeypatch):
    images, labels, masks = draw_scenes(torch.arange(200), 0, 32)
    monkeypatch.setattr(shapes, "OUTLINES", tuple(lambda x, y: torch.full_like(x, 9.0) for _ in CLASSES))
    empty, same_labels, no_masks = draw_scenes(torch.arange(200), 0, 32)
    assert torch.equal(labels, same_labels)
    assert not no_masks.any()
    difference = (images.int() - empty.int()).abs().amax(1)
    # thin tips run on for a few pixels that they only tint
    pointed = (labels == CLASSES.index("crescent")) | (labels == CLASSES.index("star"))
    for rows, margin in ((~pointed, 2), (pointed, 4)):
        near = torch.nn.functional.max_pool2d((masks[rows] > 0).float(), 2 * margin + 1, 1, margin) > 0
        assert (difference[rows][~near] == 0).all()
    assert (difference[masks > 0] > 20).float().mean() > 0.97  # the object stands out from what it covers


def test_several_objects_are_seen_where_the_mask_says(monkeypatch):
    images, labels, masks = draw_scenes(torch.arange(200), 0, 64, 3)
    one, _, _ = draw_scenes(torch.arange(200), 0, 64, 1)
    assert not torch.equal(images, one)
    monkeypatch.setattr(shapes, "OUTLINES", tuple(lambda x, y: torch.full_like(x, 9.0) for _ in CLASSES))
    empty, same_labels, _ = draw_scenes(torch.arange(200), 0, 64, 3)
    assert torch.equal(labels, same_labels)
    difference = (images.int() - empty.int()).abs().amax(1)
    near = torch.nn.functional.max_pool2d((masks > 0).float(), 9, 1, 4) > 0
    assert (difference[~near] == 0).all()
    assert (difference[masks > 0] > 20).float().mean() > 0.97
    classes = [set(mask.unique().tolist()) - {0} for mask in masks]
    assert all(int(label) + 1 in found for label, found in zip(labels, classes, strict=True))
    # three of ten classes drawn at random are 2.71 different ones, and the front one may hide another
    assert 2.4 < sum(map(len, classes)) / len(classes) < 2.8


def test_the_front_object_hides_the_others(monkeypatch):
    monkeypatch.setattr(shapes, "OUTLINES", tuple(lambda x, y: torch.full_like(x, -9.0) for _ in CLASSES))
    _, labels, masks = draw_scenes(torch.arange(50), 0, 32, 3)
    assert (masks == (labels + 1)[:, None, None]).all()


def test_objects_are_the_smaller_the_more_there_are(monkeypatch):
    """Discs in place of all outlines and of all but the front one: its area is a third of a single one's."""
    disc = (shapes.OUTLINES[CLASSES.index("disc")],) * len(CLASSES)
    monkeypatch.setattr(shapes, "OUTLINES", disc)
    _, _, alone = draw_scenes(torch.arange(300), 0, 64, 1)
    _, labels, three = draw_scenes(torch.arange(300), 0, 64, 3)
    seen = (alone > 0).flatten(1).float().mean(1)
    front = (three == (labels + 1)[:, None, None]).flatten(1).float().mean(1)
    # the others may be of the same class, and an edge of the image cuts a large disc more often
    assert 0.3 < (front / seen).median() < 0.4


def test_classes_are_about_equally_frequent():
    _, labels, _ = draw_scenes(torch.arange(4000), 5, 32)
    counts = labels.bincount(minlength=10)
    assert len(counts) == len(CLASSES) == 10
    assert (counts - 400).abs().max() < 5 * math.sqrt(400 * 0.9)  # five standard deviations


def test_raw_pixels_do_not_give_the_class_away():
    train, train_labels, _ = draw_scenes(torch.arange(3000), 0, 32)
    test, labels, _ = draw_scenes(torch.arange(TEST_START, TEST_START + 500), 0, 32)
    distances = torch.cdist(test.flatten(1).float(), train.flatten(1).float())
    correct = (train_labels[distances.argmin(1)] == labels).float().mean()
    assert 0.1 < correct < 0.3


# Areas and corners are worked out here from plane geometry, in the units of the outlines

_TURN = math.radians


def _star_corners():
    return [
        (r * math.cos(_TURN(90 + 36 * i)), r * math.sin(_TURN(90 + 36 * i))) for i, r in enumerate([1.05, 0.44] * 5)
    ]


def _area(corners):
    return 0.5 * abs(
        sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True))
    )


def _lens(r, s, d):
    """Area that two discs of radius r and s share, their centres d apart."""
    a = r * r * math.acos((d * d + r * r - s * s) / (2 * d * r))
    b = s * s * math.acos((d * d + s * s - r * r) / (2 * d * s))
    root = math.sqrt((-d + r + s) * (d + r - s) * (d - r + s) * (d + r + s))
    return a + b - 0.5 * root


_AREAS = {
    "disc": math.pi * 0.88**2,
    "ring": math.pi * (0.92**2 - 0.52**2),
    "square": 1.48**2,
    "triangle": 0.75 * math.sqrt(3) * 1.05**2,
    "star": _area(_star_corners()),
    "cross": 2 * (1.9 * 0.54) - 0.54**2,
    "heart": 1 + math.pi * 0.25,
    "arrow": 0.5 * 1.5 * 0.9 + 0.4 * (0.98 + 0.1),
    "crescent": math.pi * 0.92**2 - _lens(0.92, 0.72, 0.48),
    "corner": 0.48 * 1.64 + (1.4 - 0.48) * 0.48,
}


def _field(name, cells=800, reach=1.2):
    line = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells * 2 * reach - reach
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x, y, shapes.OUTLINES[CLASSES.index(name)](x, y), 2 * reach / cells


@pytest.mark.parametrize("name", CLASSES)
def test_outline_has_the_area_of_its_shape(name):
    _, _, distance, cell = _field(name)
    assert (distance < 0).sum().item() * cell**2 == pytest.approx(_AREAS[name], rel=0.01)


@pytest.mark.parametrize("name", CLASSES)
def test_outline_is_a_distance_near_its_edge(name):
    x, y, distance, cell = _field(name)
    down, across = torch.gradient(distance, spacing=cell)
    near = distance.abs() < 0.04
    slope = (down**2 + across**2).sqrt()[near]
    assert ((slope - 1).abs() < 0.02).float().mean() > 0.93  # all but the corners
    assert (x**2 + y**2).sqrt()[distance < 0].max() < 1.1


def test_star_covers_its_polygon():
    x, y, distance, cell = _field("star", cells=300)
    points = np.stack([x.flatten().numpy(), y.flatten().numpy()], 1)
    inside = torch.from_numpy(Polygon(_star_corners()).contains_points(points)).view_as(distance)
    clear = distance.abs() > cell
    assert torch.equal(inside[clear], (distance < 0)[clear])


def test_outlines_differ_under_every_turn():
    # A shape laid on itself overlaps by 1
    line = torch.linspace(-1.2, 1.2, 64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    turned = {}
    for name, outline in zip(CLASSES, shapes.OUTLINES, strict=True):
        inside = []
        for degrees, mirror in itertools.product(range(0, 360, 5), (1, -1)):
            c, s = math.cos(_TURN(degrees)), math.sin(_TURN(degrees))
            inside.append(outline((x * c + y * s) * mirror, y * c - x * s) < 0)
        turned[name] = torch.stack(inside).flatten(1).float()
    for first, second in itertools.combinations(CLASSES, 2):
        shared = turned[first][:1] @ turned[second].T
        union = turned[first][:1].sum() + turned[second].sum(1) - shared
        assert (shared / union).max() < 0.85, (first, second)


def test_source_keeps_train_and_test_apart_and_carries_masks():
    splits = load_splits(ShapesConfig(train_size=200, test_size=100, holdout=0.1))
    everything = [part.read(torch.arange(len(part))).flatten(1) for part in (splits.train, splits.holdout, splits.test)]
    assert [len(part) for part in everything] == [180, 20, 100]
    assert len(torch.cat(everything).unique(dim=0)) == 300
    masks = splits.train.read_masks(torch.tensor([4]))
    assert masks.max() == splits.train.labels[4] + 1
    assert torch.equal(draw_scenes(splits.train.index[4:5], 0, 32)[0], splits.train.read(torch.tensor([4])))


def test_growing_a_split_keeps_its_first_scenes():
    small, large = (load_splits(ShapesConfig(train_size=n, test_size=n, holdout=0)) for n in (50, 80))
    first = torch.arange(50)
    assert torch.equal(small.train.read(first), large.train.read(first))
    assert torch.equal(small.test.read(first), large.test.read(first))


@pytest.mark.parametrize("change", [{"image_size": 31}, {"train_size": 0}, {"test_size": -1}, {"objects": 0}])
def test_impossible_settings(change):
    with pytest.raises(UserError, match=next(iter(change))):
        load_splits(ShapesConfig(**{"train_size": 20, "test_size": 20, **change}))


def test_only_what_is_read_is_drawn_and_its_pixels_are_those_of_the_whole(monkeypatch):
    drawn = []
    plain = shapes.draw_scenes

    def watched(index, *how):
        drawn.append(index)
        return plain(index, *how)

    monkeypatch.setattr(shapes, "draw_scenes", watched)
    settings = {"train_size": 90, "test_size": 20, "seed": 11}
    splits = load_splits(ShapesConfig(limit=13, **settings))
    whole = load_splits(ShapesConfig(**settings)).train
    assert not drawn, "no image was read"
    assert splits.pretrain.read_masks(torch.arange(0)).shape == (0, 32, 32)
    assert not drawn
    images = splits.pretrain.read(torch.tensor([3, 5]))
    assert sorted(torch.cat(drawn).tolist()) == splits.pretrain.index.sort().values.tolist()
    expected, labels, masks = plain(splits.pretrain.index, 11, 32)
    assert torch.equal(images, expected[[3, 5]])
    assert torch.equal(splits.pretrain.labels, labels)
    everything = torch.arange(len(whole))
    place = {number: at for at, number in enumerate(whole.index.tolist())}
    at = torch.tensor([place[number] for number in splits.pretrain.index.tolist()])
    assert torch.equal(whole.read(everything)[at], expected)
    assert torch.equal(whole.read_masks(everything)[at], masks)
    assert sum(map(len, drawn)) == len(whole), "what was there was drawn again"
    moved = load_splits(ShapesConfig(limit=5, **{**settings, "seed": 12})).train.on(torch.device("cpu"))
    assert torch.equal(moved.read(torch.arange(5)), plain(moved.index, 12, 32)[0])
    unlabelled = load_splits(ShapesConfig(limit=5, labelled=False, **settings)).train
    assert unlabelled.labels is None


def test_what_is_first_read_in_inference_mode_is_drawn_and_stays_a_plain_tensor():
    """As the online evaluation does with the hold-out, before anything else has read it."""
    settings = {"train_size": 12, "test_size": 9, "seed": 77, "image_size": 32}
    part = load_splits(ShapesConfig(**settings)).test
    with torch.inference_mode():
        first = part.read(torch.arange(9))
    assert torch.equal(first, draw_scenes(torch.arange(TEST_START, TEST_START + 9), 77, 32)[0])
    assert not part.read(torch.arange(9)).is_inference()
