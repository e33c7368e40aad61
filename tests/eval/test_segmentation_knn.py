"""Segmentation by neighbours against a loop, and masks that leave pixels out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from measuring import evaluate
from tiny import resident
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional.segmentation import mean_iou

from selfsup.data.base import Splits
from selfsup.errors import UserError
from selfsup.eval import (
    Encoder,
    SegmentationKnnSettings,
    SegmentationSettings,
    eval_config,
    segment,
    segmentation_knn,
    segmentation_probe,
)
from selfsup.eval.pixels import confusion
from selfsup.eval.protocols.segmentation import train_pixel_classifiers
from selfsup.eval.protocols.segmentation_knn import CellBank, cell_classes
from selfsup.eval.shown import Panels
from selfsup.report import save
from selfsup.report.charts.segmentation import segmentation_panels
from selfsup.types import Normalization

COLOURS = torch.tensor([[90, 90, 90], [200, 40, 40], [40, 200, 40], [40, 40, 200]])


def scenes(count, seed=0, size=16, unknown=0.0, masks=True):
    """Blocks of 4 × 4 pixels of four classes, coloured by class under noise; ``unknown`` of the pixels are 255."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(0, 4, (count, size // 4, size // 4), generator=generator)
    truth = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
    noise = torch.randint(-30, 30, (count, 3, size, size), generator=generator)
    images = (COLOURS[truth].permute(0, 3, 1, 2) + noise).to(torch.uint8)
    truth = truth.to(torch.uint8)
    truth[torch.rand(truth.shape, generator=generator) < unknown] = 255
    return resident(
        images, None, name="blocks", split="train", image_size=size, masks=truth if masks else None,
        normalization=Normalization((0.4,) * 3, (0.3,) * 3), classes=("red", "green", "blue"),
    )  # fmt: skip


class Cells(nn.Module):
    """Means over cells of the colours: features that know the class."""

    def __init__(self, side=4):
        super().__init__()
        self.side, self.images = side, 0

    def forward_dense(self, images):
        self.images += len(images)
        return F.adaptive_avg_pool2d(images, self.side)


def knn(train, test, network=None, **settings):
    seed = settings.pop("seed", 0)
    settings = SegmentationKnnSettings(**{"k": 3, **settings})
    return segmentation_knn(Encoder(network or Cells(), progress=False), train, test, settings, seed)


# the vote


def test_shares_of_a_cell_are_counted_pixel_by_pixel():
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 4, (2, 6, 9), generator=generator).to(torch.uint8)
    masks[masks == 3] = 255
    masks[0, :2, :3] = 255  # a whole cell
    found = cell_classes(masks, 3, (3, 3))
    for n in range(2):
        for row in range(3):
            for column in range(3):
                pixels = masks[n, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3].flatten().tolist()
                known = [p for p in pixels if p != 255]
                expected = [known.count(c) / len(known) if known else 0.0 for c in range(3)]
                assert found[n, :, row, column].tolist() == pytest.approx(expected)
    assert found[0, :, 0, 0].sum() == 0


def looped(bank, shares, maps, k, temperature):
    """The vote in plain Python floats."""
    unit = [np.asarray(b) / np.linalg.norm(b) for b in bank.double().numpy()]
    found = np.zeros((len(maps), shares.shape[1], *maps.shape[2:]))
    for n, _, row, column in np.ndindex(len(maps), 1, *maps.shape[2:]):
        query = maps[n, :, row, column].double().numpy()
        cosines = [float(query @ b) / float(np.linalg.norm(query)) for b in unit]
        nearest = sorted(range(len(unit)), key=lambda i: -cosines[i])[:k]
        weights = [math.exp(cosines[i] / temperature) for i in nearest]
        for i, weight in zip(nearest, weights, strict=True):
            found[n, :, row, column] += weight / sum(weights) * shares[i].double().numpy()
    return torch.from_numpy(found)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.02), (4, 0.1), (9, 0.5)])
def test_the_vote_is_the_weighted_mean_over_the_nearest_cells(k, temperature, monkeypatch):
    generator = torch.Generator().manual_seed(k)
    bank, maps = torch.randn(9, 5, generator=generator), torch.randn(2, 5, 3, 4, generator=generator)
    shares = torch.rand(9, 3, generator=generator)
    shares /= shares.sum(1, keepdim=True)
    cells = CellBank(bank, shares, k, temperature)
    found = cells.probabilities(maps)
    torch.testing.assert_close(found.double(), looped(bank, shares, maps, k, temperature), atol=1e-5, rtol=1e-4)
    upsampled = nn.Upsample((9, 8), mode="bilinear", align_corners=False)(found).argmax(1)
    assert torch.equal(cells.predict(maps, (9, 8)), upsampled)
    monkeypatch.setattr("selfsup.eval.protocols.segmentation_knn.VOTES", 5 * k * 3)
    monkeypatch.setattr("selfsup.eval.pixels.LOGITS", 3 * 72)
    assert torch.equal(cells.probabilities(maps), found)
    assert torch.equal(cells.predict(maps, (9, 8)), upsampled)


def test_a_bank_of_the_scored_images_gives_their_own_cells_back():
    data = scenes(8)
    result = knn(data, data, k=1)
    assert result.bank.features.shape == (8 * 16, 3)
    _, truth = segment(Encoder(Cells(), progress=False), result.bank, data)
    own = result.bank.probabilities(F.adaptive_avg_pool2d((data._images / 255 - 0.4) / 0.3, 4)).argmax(1)
    assert torch.equal(own, truth[:, 2::4, 2::4])


def test_the_score_is_torchmetrics_on_every_image():
    train, test = scenes(40, unknown=0.3), scenes(21, 2)
    result = knn(train, test, batch_size=8)
    predicted, truth = segment(Encoder(Cells(), progress=False), result.bank, test)
    expected = mean_iou(predicted, truth, num_classes=4, per_class=True, input_format="index")
    # torchmetrics averages over images; over all of them as one picture is the total
    total = mean_iou(
        predicted.reshape(1, -1, 16), truth.reshape(1, -1, 16), num_classes=4, per_class=True, input_format="index"
    )[0]
    assert expected.shape == (21, 4)
    assert [result.per_class[c] for c in range(4)] == pytest.approx(total.tolist())
    assert result.miou == pytest.approx(total.mean().item())
    assert result.pixel_accuracy == pytest.approx((predicted == truth).double().mean().item())
    assert result.images == (40, 21)
    assert result.map_size == (4, 4)


def test_features_that_know_the_class_beat_features_that_do_not():
    class Blind(Cells):
        def forward_dense(self, images):
            self.images += len(images)
            return torch.randn(len(images), 3, 4, 4, generator=torch.Generator().manual_seed(self.images))

    train, test = scenes(40), scenes(20, 2)
    assert knn(train, test, Blind(), k=10).miou < 0.25 < 0.6 < knn(train, test, k=10).miou


# bounds and choices


def test_the_bank_is_bounded_and_seeded():
    train, test = scenes(30), scenes(4, 2)
    network = Cells()
    first, again, other = (knn(train, test, network, cells=50, images=12, seed=seed) for seed in (1, 1, 2))
    assert network.images == 3 * (12 + 4)
    assert first.bank.features.shape == (12 * 4, 3)  # 50 // 12 of each image
    assert torch.equal(first.bank.features, again.bank.features)
    assert not torch.equal(first.bank.features, other.bank.features)
    assert torch.equal(first.bank.features, knn(train, test, cells=50, images=12, seed=1, batch_size=5).bank.features)
    assert len(knn(train, test, cells=7).bank.features) == 7  # fewer cells than images
    everything = F.adaptive_avg_pool2d((train._images / 255 - 0.4) / 0.3, 4).permute(0, 2, 3, 1).reshape(-1, 3)
    distance = torch.cdist(first.bank.features.double(), everything.double()).min(1).values
    assert (distance < 1e-5).all()  # real cells,
    assert len(first.bank.features.unique(dim=0)) == 48  # each once


def test_each_cell_keeps_its_own_classes():
    train = scenes(10)
    bank = knn(train, scenes(2, 1), cells=60).bank
    colours = (COLOURS / 255 - 0.4) / 0.3
    assert torch.equal(torch.cdist(bank.features, colours.float()).argmin(1), bank.classes.argmax(1))


def test_a_small_bank_votes_as_a_whole():
    assert knn(scenes(1), scenes(2, 1), k=100).bank.k == 16


def test_cells_of_unknown_class_are_in_no_bank():
    train = scenes(3)
    train._masks[0] = 255
    train._masks[1, :4, :4] = 255
    assert len(knn(train, scenes(2, 1)).bank.features) == 16 + 15


# pixels that are left out, of the linear probe too


def test_ignored_pixels_do_not_count():
    truth = torch.tensor([[0, 1, 255, 255], [2, 2, 255, 1]])
    predicted = torch.tensor([[0, 1, 2, 0], [2, 0, 1, 1]])
    known = truth != 255
    assert torch.equal(confusion(predicted, truth, 3), confusion(predicted[known], truth[known], 3))
    assert confusion(predicted, truth, 3).sum() == 5


def test_ignored_pixels_do_not_train(monkeypatch):
    """The gradient is that of cross-entropy over the known pixels of the whole batch, in blocks of any size."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(6, 4, 2, 2, generator=generator)
    masks = torch.randint(0, 3, (6, 4, 4), generator=generator).to(torch.uint8)
    masks[0] = 255
    masks[1, :3] = 255
    settings = SegmentationSettings(learning_rates=[0.5], epochs=1, batch_size=6)
    (found,) = train_pixel_classifiers(maps, masks, 3, settings, 0)
    convolution = nn.Conv2d(4, 3, 1)
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    standard = (maps - maps.mean((0, 2, 3)).view(-1, 1, 1)) / maps.std((0, 2, 3), correction=0).view(-1, 1, 1)
    logits = F.interpolate(convolution(standard), (4, 4), mode="bilinear").permute(0, 2, 3, 1)
    optimizer = torch.optim.SGD(convolution.parameters(), lr=0.5, momentum=0.9, nesterov=True)
    known = masks != 255
    F.cross_entropy(logits[known], masks[known].long()).backward()
    optimizer.step()
    torch.testing.assert_close(found.weight, convolution.weight.detach()[:, :, 0, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.bias, convolution.bias.detach(), rtol=1e-4, atol=1e-6)
    monkeypatch.setattr("selfsup.eval.pixels.LOGITS", 2 * 3 * 16)
    (blocks,) = train_pixel_classifiers(maps, masks, 3, settings, 0)
    torch.testing.assert_close(blocks.weight, found.weight)


def test_the_linear_probe_is_scored_on_known_pixels_alone():
    train, holdout, test = scenes(40, unknown=0.2), scenes(10, 1, unknown=0.2), scenes(20, 2, unknown=0.2)
    result = segmentation_probe(
        Encoder(Cells(), progress=False), train, test, SegmentationSettings(epochs=3), holdout=holdout
    )
    predicted, truth = segment(Encoder(Cells(), progress=False), result.classifier, test)
    known = truth != 255
    assert 0.1 < 1 - known.double().mean() < 0.3
    assert result.pixel_accuracy == pytest.approx((predicted[known] == truth[known]).double().mean().item())
    assert set(result.per_class) == {0, 1, 2, 3}
    assert len(result.classifier.bias) == 4  # 255 is no class
    assert result.miou > 0.5


def test_the_picture_leaves_unknown_pixels_white(tmp_path):
    from PIL import Image

    truth = torch.full((1, 8, 8), 255)
    shown = Panels(torch.zeros(1, 3, 8, 8), truth, torch.zeros_like(truth))
    path = save(segmentation_panels(shown), tmp_path / "a.png")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    middle = pixels[len(pixels) // 2, : pixels.shape[1] // 2]  # through the panel of the truth
    assert (middle == 255).all(1).mean() > 0.8


# in the evaluation and its errors


class Network(Cells):
    def forward(self, images):
        return self.forward_dense(images).mean((2, 3))


def parts(**settings):
    return Splits(scenes(30, 0), scenes(30, 0), scenes(8, 1, **settings), scenes(10, 2, **settings))


def test_the_record_carries_its_protocol():
    config = eval_config(segmentation_knn={"k": 5, "cells": 100, "temperature": 0.1})
    (record,) = evaluate(Network(), parts(), config, ["segmentation_knn"], seed=3)
    expected = {
        "split": "test", "metric": "miou", "primary": True, "k": 5, "neighbours": 5, "temperature": 0.1, "seed": 3,
        "bank_cells": 90, "train_images": 30, "holdout_images": 0, "test_images": 10, "map_size": [4, 4], "dim": 3,
        "mask_size": 16, "data": "blocks",
    }  # fmt: skip
    assert {name: record[name] for name in expected} == expected
    assert set(record["per_class"]) == {"background", "red", "green", "blue"}
    assert record["value"] == knn(scenes(30), scenes(10, 2), k=5, cells=100, temperature=0.1, seed=3).miou


def test_without_test_images_the_holdout_is_scored():
    some = parts()
    some = Splits(some.pretrain, some.train, some.holdout, None)
    (record,) = evaluate(Network(), some, eval_config(), ["segmentation_knn"])
    assert (record["split"], record["holdout_images"], record["test_images"]) == ("holdout", 8, 0)


@pytest.mark.parametrize("settings", [{"k": 0}, {"cells": 0}, {"temperature": 0.0}, {"images": 0}])
def test_settings_out_of_range(settings):
    with pytest.raises(UserError, match=r"eval\.segmentation_knn\.k, images, cells"):
        knn(scenes(2), scenes(2, 1), **settings)


def test_what_cannot_be_segmented_is_said():
    with pytest.raises(UserError, match="no masks"):
        knn(scenes(4, masks=False), scenes(2))
    with pytest.raises(UserError, match="forward_dense"):
        knn(scenes(4), scenes(2), nn.Flatten())
    with pytest.raises(UserError, match="no network"):
        evaluate(None, parts(), eval_config(), ["segmentation_knn"])
    empty = scenes(4, unknown=1.1)
    with pytest.raises(UserError, match="no pixel of 'blocks'"):
        knn(empty, scenes(2))
    with pytest.raises(UserError, match="no pixel of 'blocks'"):
        knn(scenes(4), empty)
    with pytest.raises(UserError, match="no pixel of 'blocks'"):
        segmentation_probe(
            Encoder(Cells(), progress=False), scenes(20), empty, SegmentationSettings(epochs=1), holdout=scenes(4)
        )


def test_a_class_beyond_the_known_ones_is_named():
    odd = scenes(4)
    odd._masks[2, 3, 3] = 9
    with pytest.raises(UserError, match="value 9"):
        knn(scenes(4), odd)
