"""The protocols on augmented views: concentration of classes and alignment of places."""

import pytest
import torch
from measuring import changed, evaluate
from tiny import resident
from torch import nn
from torch.nn import functional as F

from selfsup.augment import RECIPES, ViewGenerator
from selfsup.data.base import Splits
from selfsup.errors import UserError
from selfsup.eval import eval_config
from selfsup.functional import augmented_distance, dense_alignment, pixpro_mask
from selfsup.types import Normalization

CONFIG = eval_config(batch_size=8, concentration={"images": 40, "views": 3}, dense_alignment={"images": 6})
PLAIN = Normalization((0.0,), (1.0,))


class Pooled(nn.Module):
    """Cells are mean colours, the feature is the mean of the cells; ``cell`` may replace what a cell sees."""

    in_channels = 3

    def forward(self, images):
        return self.forward_dense(images).mean((2, 3))

    def forward_dense(self, images):
        return F.adaptive_avg_pool2d(images, 4)


class Position(Pooled):
    """Cells say where in the view they are, whatever it shows."""

    def forward_dense(self, images):
        where = torch.eye(16, device=images.device, dtype=images.dtype).view(1, 16, 4, 4)
        return where.expand(len(images), -1, -1, -1)


def splits(labels=True, ramp=False):
    which = torch.arange(60) % 3
    images = torch.full((60, 3, 24, 24), 30.0)
    images[torch.arange(60), which] = 220.0  # a class is a colour
    images += 20 * torch.rand(60, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    if ramp:  # red says the column, green the row, and blue completes them
        x = torch.arange(24.0) * 10 + 5
        images[:, 0], images[:, 1], images[:, 2] = x, x[:, None], 120.0
    data = resident(
        images.round().clamp(0, 255).to(torch.uint8),
        which if labels else None,
        name="colours",
        image_size=24,
        normalization=PLAIN,
        classes=("red", "green", "blue"),
    )
    return Splits(data, data, data.subset(torch.arange(0)), None)


def by_metric(records, **how):
    found = {r.metric: r for r in records if all(r.get(name) == value for name, value in how.items())}
    assert found
    return found


def test_classes_that_are_colours_concentrate_under_crops_and_not_under_gray(monkeypatch):
    gray = tuple(RECIPES["simclr_small"][0])
    monkeypatch.setitem(RECIPES, "only_gray", ((type(gray[0])(["gray"], gray[0].crop, gray_p=1.0),),))
    monkeypatch.setitem(RECIPES, "only_crop", ((type(gray[0])((), gray[0].crop),),))
    every = changed(CONFIG, concentration={"images": 60, "recipe": "only_crop"})
    records = evaluate(Pooled(), splits(), every, ["concentration"])
    for space in ("pixels", "features"):
        found = by_metric(records, space=space)["concentration"]
        assert found.value == 1
        assert found["chance"] == pytest.approx(19 / 59)
        curve = found["curve"]
        assert curve["same"][-1] == curve["other"][-1] == 1
        assert any(same == 1 and other == 0 for same, other in zip(curve["same"], curve["other"], strict=True))
    features = by_metric(records, space="features")
    assert features["misaligned"].value == 0
    assert features["overlap"]["largest"] >= features["overlap"].value
    assert features["overlap"].value < 0.5
    assert features["overlap"]["centres"][0][0] == pytest.approx(1, abs=0.01)
    records = evaluate(Pooled(), splits(), changed(every, concentration={"recipe": "only_gray"}), ["concentration"])
    features = by_metric(records, space="features")
    assert features["overlap"].value == pytest.approx(1, abs=1e-4)
    assert features["concentration"].value < 0.9


def test_records_are_those_of_the_views_that_the_generator_draws():
    parts = splits()
    records = evaluate(Pooled(), parts, CONFIG, ["concentration"], seed=3)
    chosen = torch.linspace(0, 59, 40).round().long()
    source = parts.train.read(chosen)
    recipe = RECIPES["simclr_small"][0]
    generator = ViewGenerator([recipe[i % len(recipe)] for i in range(3)], [24] * 3, PLAIN)
    views = torch.stack([v.image for v in generator(source, seed=3, index=parts.train.index[chosen])], 1)
    features = F.normalize(views.mean((3, 4)), dim=2)
    labels = parts.train.labels[chosen]
    for space, points in (("features", features), ("pixels", views.flatten(2))):
        distance = augmented_distance(points).fill_diagonal_(9e9)
        expected = (labels[distance.argmin(1)] == labels).double().mean().item()
        found = by_metric(records, space=space)["concentration"]
        assert found.value == pytest.approx(expected, abs=0.03), space
    first = records[0]
    assert (first["recipe"], first["images"], first["views"], first["split"]) == ("simclr_small", 40, 3, "train")
    assert by_metric(records, space="features")["misaligned"]["epsilon"] == 0.5


def test_places_of_a_ramp_are_found_and_those_of_a_clock_are_not():
    ramp = changed(CONFIG, dense_alignment={"recipe": "moco_v1"})
    RECIPES["plain_crop"] = ((type(RECIPES["simclr_small"][0][0])(["flip"], RECIPES["simclr_small"][0][0].crop),),)
    try:
        ramp = changed(ramp, dense_alignment={"recipe": "plain_crop"})
        seen = by_metric(evaluate(Pooled(), splits(ramp=True), ramp, ["dense_alignment"]))
        blind = by_metric(evaluate(Position(), splits(ramp=True), ramp, ["dense_alignment"]))
    finally:
        del RECIPES["plain_crop"]
    assert seen["match_accuracy"].value > 0.9
    assert seen["alignment"].value < 0.03
    assert seen["match_accuracy"]["chance"] < 0.4
    # cells that say where in the view they are: orthogonal but to themselves, uniform, and aligned only by chance
    assert blind["match_accuracy"].value < 0.5
    assert blind["alignment"].value > 1
    assert blind["uniformity"].value < -1.5 < seen["uniformity"].value


def test_dense_alignment_is_that_of_the_two_views():
    parts = splits(ramp=True)
    record = by_metric(evaluate(Pooled(), parts, CONFIG, ["dense_alignment"], seed=2))["alignment"]
    chosen = torch.linspace(0, 59, 6).round().long()
    recipe = RECIPES["simclr_small"][0]
    generator = ViewGenerator([recipe[i % len(recipe)] for i in range(2)], [24] * 2, PLAIN)
    views = generator(parts.train.read(chosen), seed=2, index=parts.train.index[chosen])
    maps = [F.adaptive_avg_pool2d(v.image, 4) for v in views]
    mask = pixpro_mask(views[0].to_source, views[1].to_source, 4, 0.7)
    assert record.value == pytest.approx(dense_alignment(*maps, mask).item(), rel=1e-5)
    assert (record["recipe"], record["images"], record["side"], record["threshold"]) == ("simclr_small", 6, 4, 0.7)


def test_what_cannot_be_measured_is_a_sentence():
    for name, values, words in (
        ("concentration", {"recipe": "simclrr"}, r"eval\.concentration\.recipe: there is no recipe 'simclrr'"),
        ("dense_alignment", {"recipe": "no"}, r"eval\.dense_alignment\.recipe: there is no recipe 'no'"),
        ("dense_alignment", {"threshold": 1e-9}, r"eval\.dense_alignment\.threshold: no two cells"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate(Pooled(), splits(), changed(CONFIG, **{name: values}), [name])
    with pytest.raises(UserError, match="no label"):
        evaluate(Pooled(), splits(labels=False), CONFIG, ["concentration"])


def test_both_have_a_picture(tmp_path):
    evaluate(Pooled(), splits(ramp=True), CONFIG, ["concentration", "dense_alignment"], run_dir=tmp_path)
    assert {"concentration.png", "dense_alignment.png"} <= {path.name for path in (tmp_path / "figures").iterdir()}
