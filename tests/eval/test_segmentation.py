"""The segmentation probe: counting, choosing, bounded memory, and what it finds in features whose worth is known."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from measuring import changed, evaluate
from tiny import resident
from torch import nn
from torch.nn import functional as F

from selfsup.data.base import Splits
from selfsup.errors import UserError
from selfsup.eval import (
    Encoder,
    SegmentationSettings,
    add_results,
    eval_config,
    read_results,
    segment,
    segmentation_probe,
)
from selfsup.eval.pixels import confusion, intersection_over_union
from selfsup.eval.protocols.segmentation import PixelClassifier, standardiser, train_pixel_classifiers
from selfsup.report import compare
from selfsup.types import Normalization

CLASSES = ("red", "green", "blue")


def scenes(count, seed=0, size=16, masks=True, name="squares"):
    """Blocks of 4 × 4 pixels, each of one of four classes: grey background and three colours, under some noise."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(0, 4, (count, size // 4, size // 4), generator=generator)
    truth = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
    colours = torch.tensor([[90, 90, 90], [200, 40, 40], [40, 200, 40], [40, 40, 200]])
    images = colours[truth].permute(0, 3, 1, 2) + torch.randint(-30, 30, (count, 3, size, size), generator=generator)
    return resident(
        images.to(torch.uint8),
        torch.randint(0, 3, (count,), generator=generator),
        name=name,
        split="train",
        image_size=size,
        normalization=Normalization((0.4,) * 3, (0.3,) * 3),
        classes=CLASSES,
        masks=truth.to(torch.uint8) if masks else None,
    )


class Oracle(nn.Module):
    """Dense features that are the pooled one-hot of the true class, read back from the colours."""

    def __init__(self, side):
        super().__init__()
        self.side, self.images = side, 0

    def forward(self, images):
        return images.mean((2, 3))

    def forward_dense(self, images):
        self.images += len(images)
        smooth = F.avg_pool2d(images, 4)
        colours = (torch.tensor([[90, 90, 90], [200, 40, 40], [40, 200, 40], [40, 40, 200]]) / 255 - 0.4) / 0.3
        nearest = (smooth[:, None] - colours[None, :, :, None, None]).pow(2).sum(2).argmin(1)
        return F.adaptive_avg_pool2d(F.one_hot(nearest, 4).permute(0, 3, 1, 2).float(), self.side)


class Blind(Oracle):
    """Dense features of the same shape that know nothing of the image."""

    def forward_dense(self, images):
        self.images += len(images)
        return torch.randn(len(images), 4, self.side, self.side, generator=torch.Generator().manual_seed(self.images))


def probe(backbone, train, scored, **settings):
    holdout, seed = settings.pop("holdout", None), settings.pop("seed", 0)
    encoder, settings = Encoder(backbone, progress=False), SegmentationSettings(**{"epochs": 5, **settings})
    return segmentation_probe(encoder, train, scored, settings, holdout=holdout, seed=seed)


# counting


def brute_force(predicted, truth):
    """IoU of each class that the true masks contain, pixel by pixel."""
    found = {}
    pairs = list(zip(predicted.flatten().tolist(), truth.flatten().tolist(), strict=True))
    for label in {t for _, t in pairs}:
        both = sum(p == label and t == label for p, t in pairs)
        either = sum(p == label or t == label for p, t in pairs)
        found[label] = both / either
    return found


@pytest.mark.parametrize("seed", range(4))
def test_iou_is_the_brute_force_count(seed):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 5, (3, 6, 7), generator=generator)
    predicted = torch.where(torch.rand(3, 6, 7, generator=generator) < 0.5, truth, (truth + 2) % 5)
    matrix = confusion(predicted, truth.to(torch.uint8), 5)
    assert matrix.sum() == truth.numel()
    assert intersection_over_union(matrix) == pytest.approx(brute_force(predicted, truth))


def test_absent_classes_do_not_count_but_their_pixels_do():
    truth = torch.tensor([[0, 0, 0, 0], [2, 2, 2, 2]])
    predicted = torch.tensor([[0, 0, 0, 1], [2, 2, 0, 3]])  # 1 and 3 are in no mask, and 4 nowhere
    found = intersection_over_union(confusion(predicted, truth, 5))
    assert found == {0: 3 / 5, 2: 2 / 4}
    assert found == brute_force(predicted, truth)


def test_a_class_that_is_never_found_has_iou_0():
    truth = torch.tensor([0, 1, 1])
    assert intersection_over_union(confusion(torch.zeros(3, dtype=torch.long), truth, 2)) == {0: 1 / 3, 1: 0.0}


# the classifier


def test_training_is_a_convolution_with_upsampled_logits_under_sgd():
    """The same with torch's layers: BatchNorm with fixed statistics, Conv2d, Upsample, SGD, one rate at a time."""
    generator = torch.Generator().manual_seed(0)
    maps = (3 * torch.randn(10, 5, 2, 3, generator=generator) + 1).half()
    masks = torch.randint(0, 3, (10, 4, 6), generator=generator).to(torch.uint8)
    rates = [0.1, 2.0]
    found = train_pixel_classifiers(
        maps, masks, 3, SegmentationSettings(learning_rates=rates, epochs=3, batch_size=4), seed=7
    )
    norm = nn.BatchNorm2d(5, eps=0, affine=False)
    norm.running_mean = maps.float().mean((0, 2, 3))
    norm.running_var = maps.float().var((0, 2, 3), correction=0)
    norm.eval()
    for rate, classifier in zip(rates, found, strict=True):
        convolution = nn.Conv2d(5, 3, 1)
        nn.init.zeros_(convolution.weight)
        nn.init.zeros_(convolution.bias)
        network = nn.Sequential(norm, convolution, nn.Upsample((4, 6), mode="bilinear", align_corners=False))
        optimizer = torch.optim.SGD(convolution.parameters(), lr=rate, momentum=0.9, nesterov=True)
        order, step = torch.Generator().manual_seed(7), 0
        for _ in range(3):
            for batch in torch.randperm(10, generator=order).split(4):
                for group in optimizer.param_groups:
                    group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / 9))
                optimizer.zero_grad()
                F.cross_entropy(network(maps[batch].float()), masks[batch].long()).backward()
                optimizer.step()
                step += 1
        with torch.no_grad():
            expected = network(maps.float())
        assert expected.std() > 0.01
        torch.testing.assert_close(classifier.logits(maps.float(), (4, 6)), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(classifier.predict(maps.float(), (4, 6)), classifier.logits(maps.float(), (4, 6)).argmax(1))


def test_small_blocks_change_nothing(monkeypatch):
    maps = torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    masks = torch.randint(0, 3, (6, 4, 4), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    settings = SegmentationSettings(learning_rates=[0.5], epochs=2, batch_size=6)
    whole = train_pixel_classifiers(maps, masks, 3, settings, 0)[0]
    expected = whole.predict(maps, (4, 4))
    monkeypatch.setattr("selfsup.eval.pixels.LOGITS", 2 * 3 * 16)  # two images a block
    blocks = train_pixel_classifiers(maps, masks, 3, settings, 0)[0]
    torch.testing.assert_close(blocks.weight, whole.weight)
    assert torch.equal(blocks.predict(maps, (4, 4)), expected)


def test_a_constant_channel_is_ignored():
    maps = torch.randn(4, 3, 2, 2)
    maps[:, 1] = 7.0
    mean, scale = standardiser(maps)
    assert scale[1] == 0
    torch.testing.assert_close(mean, maps.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scale[::2], 1 / maps.std((0, 2, 3), correction=0)[::2])


# what it finds


def best_for_upsampled_one_hot(dataset, side):
    """Mean IoU when the pooled one-hot itself, upsampled, is the logits."""
    masks = dataset.read_masks(torch.arange(len(dataset))).long()
    pooled = F.adaptive_avg_pool2d(F.one_hot(masks, 4).permute(0, 3, 1, 2).float(), side)
    predicted = F.interpolate(pooled, masks.shape[1:], mode="bilinear", align_corners=False).argmax(1)
    values = brute_force(predicted, masks)
    return sum(values.values()) / len(values)


@pytest.mark.parametrize("side", [2, 4])
def test_features_that_hold_the_class_reach_their_bound_and_blind_ones_do_not(side):
    train, holdout, test = scenes(120), scenes(30, 1), scenes(40, 2)
    bound = best_for_upsampled_one_hot(test, side)
    seen = probe(Oracle(side), train, test, holdout=holdout)
    assert seen.miou == pytest.approx(bound, abs=0.04)
    assert seen.map_size == (side, side)
    blind = probe(Blind(side), train, test, holdout=holdout)
    assert blind.miou < 0.2 < seen.miou  # a quarter of the pixels by chance: IoU 1/7
    assert set(seen.per_class) == {0, 1, 2, 3}
    assert seen.miou == pytest.approx(sum(seen.per_class.values()) / 4)


def test_the_score_is_that_of_the_chosen_classifier_on_every_image():
    train, holdout, test = scenes(60), scenes(20, 1), scenes(45, 2)
    result = probe(Oracle(4), train, test, holdout=holdout, batch_size=16)
    predicted, truth = segment(Encoder(Oracle(4), progress=False), result.classifier, test)
    assert torch.equal(truth, test.read_masks(torch.arange(45)).long())
    assert result.per_class == pytest.approx(brute_force(predicted, truth))
    assert result.pixel_accuracy == pytest.approx((predicted == truth).double().mean().item())
    assert result.images == (60, 20, 45)
    held = segment(Encoder(Oracle(4), progress=False), result.classifier, holdout)
    values = brute_force(*held)
    assert result.chosen.holdout_miou == pytest.approx(sum(values.values()) / len(values))


def test_raw_pixels_are_a_baseline_at_full_resolution():
    result = probe(None, scenes(60), scenes(20, 2), holdout=scenes(20, 1), learning_rates=[1.0, 10.0])
    assert result.map_size == (16, 16)
    assert result.miou > 0.95  # here the colour is the class
    assert len(result.classifier.mean) == 3


# choosing


def permuted(dataset, order):
    """The same images with the classes of their masks renamed."""
    masks = torch.tensor(order, dtype=torch.uint8)[dataset._masks.long()]
    return resident(
        dataset._images, dataset.labels, name="squares", split="x", image_size=16,
        normalization=dataset.normalization, classes=CLASSES, masks=masks,
    )  # fmt: skip


def test_the_choice_never_sees_the_scored_images():
    train, holdout, test = scenes(60), scenes(20, 1), scenes(20, 2)
    first, second = (probe(Oracle(4), train, part, holdout=holdout) for part in (test, permuted(test, [1, 2, 3, 0])))
    assert first.settings == second.settings
    assert first.chosen == second.chosen
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert first.miou > 0.5 > second.miou


def test_the_choice_follows_the_holdout():
    train, test, holdout = scenes(60), scenes(20, 2), scenes(20, 1)
    rates = [1.0, 0.0]
    assert probe(Oracle(4), train, test, holdout=holdout, learning_rates=rates).chosen.learning_rate == 1.0
    # on these masks whoever learned is wrong everywhere; whoever did not move says background, a quarter of the pixels
    backwards = permuted(holdout, [1, 2, 3, 0])
    assert probe(Oracle(4), train, test, holdout=backwards, learning_rates=rates).chosen.learning_rate == 0.0


def test_without_a_holdout_a_tenth_of_the_training_images_is_set_aside():
    network = Oracle(4)
    result = probe(network, scenes(60), scenes(20, 2))
    assert result.selected_on == "10% of train (6 images)"
    assert result.images == (54, 6, 20)


# bounds


def test_the_cap_bounds_the_images_read_and_kept():
    network = Oracle(4)
    result = probe(network, scenes(90), scenes(20, 2), holdout=scenes(10, 1), images=40)
    assert network.images == 40 + 10 + 20
    assert result.images[0] == 40


def test_maps_are_kept_in_half_precision_and_large_values_saturate(monkeypatch):
    kept = []
    original = train_pixel_classifiers

    def watch(maps, *arguments):
        kept.append(maps)
        return original(maps, *arguments)

    class Loud(Oracle):
        def forward_dense(self, images):
            return 1e6 * super().forward_dense(images)

    monkeypatch.setattr("selfsup.eval.protocols.segmentation.train_pixel_classifiers", watch)
    result = probe(Loud(4), scenes(30), scenes(10, 2), holdout=scenes(10, 1))
    assert kept[0].dtype == torch.float16
    assert kept[0].isfinite().all()
    assert result.miou > 0.5


def test_one_seed_gives_one_result(monkeypatch):
    kept = []
    original = train_pixel_classifiers

    def watch(maps, *arguments):
        kept.append(maps)
        return original(maps, *arguments)

    def run(seed):
        return probe(Oracle(4), scenes(80), scenes(20, 2), images=30, seed=seed)

    monkeypatch.setattr("selfsup.eval.protocols.segmentation.train_pixel_classifiers", watch)

    first, again, other = run(3), run(3), run(4)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert (first.miou, first.settings) == (again.miou, again.settings)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])  # other training images


def test_the_backbone_is_left_as_it_was():
    class Normed(Oracle):
        def __init__(self):
            super().__init__(4)
            self.norm = nn.BatchNorm2d(4)

        def forward_dense(self, images):
            return self.norm(super().forward_dense(images))

    network = Normed().train()
    probe(network, scenes(30), scenes(10, 2), holdout=scenes(10, 1))
    assert network.training
    assert network.norm.training
    assert int(network.norm.num_batches_tracked) == 0


def test_masks_are_cropped_as_the_images_are():
    """Images of twice the size and twice as wide: the classifier sees, and is scored on, the same crop."""
    square = scenes(40)
    wide = torch.cat([square._images, square._images], 3).repeat_interleave(2, 2).repeat_interleave(2, 3)
    masks = torch.cat([square._masks, square._masks], 2).repeat_interleave(2, 1).repeat_interleave(2, 2)
    data = resident(
        wide, None, name="wide", split="train", image_size=16, normalization=square.normalization, masks=masks
    )
    chosen = PixelClassifier(torch.zeros(3), torch.ones(3), torch.eye(4)[:, 1:], torch.zeros(4))
    _, truth = segment(Encoder(None, progress=False), chosen, data)
    assert truth.shape == (40, 16, 16)
    assert torch.equal(truth, torch.cat([square._masks, square._masks], 2)[:, :, 8:24].long())


# in the evaluation

CONFIG = eval_config(knn={"k": [3]}, linear_probe={"epochs": 1}, segmentation={"epochs": 3}, batch_size=16)


def splits(**settings):
    parts = [scenes(count, seed, **settings) for seed, count in enumerate((60, 20, 24))]
    return Splits(parts[0], *parts)


class Plain(nn.Module):
    """An untrained network, for what every protocol can run on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, 4, 4)

    def forward(self, images):
        return self.forward_dense(images).mean((2, 3))

    def forward_dense(self, images):
        return self.convolution(images)


def test_the_record_carries_its_protocol_and_the_figure_is_drawn(tmp_path):
    wanted = ["knn", "segmentation"]
    records = evaluate(Plain(), splits(), CONFIG, wanted, run_dir=tmp_path, epoch=3)
    assert {r["protocol"] for r in records} == set(wanted)
    (record,) = [r for r in read_results(tmp_path) if r["protocol"] == "segmentation"]
    expected = {
        "split": "test", "metric": "miou", "primary": True, "selected_on": "holdout", "data": "squares",
        "train_images": 60, "holdout_images": 20, "test_images": 24, "image_size": 16, "mask_size": 16,
        "map_size": [4, 4], "dim": 4, "epoch": 3, "seed": 0,
    }  # fmt: skip
    assert {name: record[name] for name in expected} == expected
    assert set(record["per_class"]) == {"background", *CLASSES}
    assert record["grid"]["epochs"] == 3
    assert record["chosen"] in record["settings"]
    assert (tmp_path / "figures" / "segmentation.png").stat().st_size > 1000
    add_results(
        tmp_path, [{**record, "value": 0.5, "pixel_accuracy": 0.5, "per_class": {}}]
    )  # what another machine found
    assert len(json.loads((tmp_path / "results.json").read_text())["results"]) == len(records)


def test_without_test_images_the_holdout_is_scored_and_not_chosen_on():
    parts = replace(splits(), test=None)
    (record,) = evaluate(Oracle(4), parts, CONFIG, ["segmentation"])
    assert (record["split"], record["selected_on"]) == ("holdout", "10% of train (6 images)")
    parts = replace(parts, holdout=parts.holdout.subset(torch.arange(0)))
    with pytest.raises(UserError, match=r"data\.holdout"):
        evaluate(Oracle(4), parts, CONFIG, ["segmentation"])


def test_segmentation_alone_needs_no_pooled_features():
    class Dense(nn.Module):
        def forward_dense(self, images):
            return images

    (record,) = evaluate(Dense(), splits(), CONFIG, ["segmentation"])
    assert record["value"] > 0.5


def test_data_without_masks_is_left_out_with_a_note_and_refused_when_asked_for():
    def protocols(**settings):
        return {r["protocol"] for r in evaluate(Plain(), splits(**settings), CONFIG)}

    with pytest.warns(UserWarning, match=r"Left out: .*attention"):
        everything = protocols()
    assert "segmentation" in everything
    with pytest.warns(UserWarning, match=r"Left out: .*segmentation, segmentation_knn \(.*'squares' has no masks"):
        assert protocols(masks=False) == everything - {"segmentation", "segmentation_knn"}
    with pytest.raises(UserError, match="has no masks"):
        evaluate(Oracle(4), splits(masks=False), CONFIG, ["segmentation"])


def test_a_backbone_without_maps_is_left_out_with_a_note_and_refused_when_asked_for():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.warns(UserWarning, match=r"Left out: .*segmentation, segmentation_knn \(.*forward_dense"):
        records = evaluate(network, splits(), CONFIG)
    assert "segmentation" not in {r["protocol"] for r in records}
    with pytest.raises(UserError, match="forward_dense"):
        probe(network, scenes(20), scenes(10))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rates": []}, "at least one value"),
        ({"epochs": 0}, "at least 1"),
        ({"images": 0}, "at least 1"),
        ({"images": 3}, "leave none to choose on"),
    ],
)
def test_what_a_person_can_put_right(settings, message):
    with pytest.raises(UserError, match=message):
        probe(Oracle(4), scenes(20), scenes(10), **settings)


def test_a_diverged_network_is_named():
    class Broken(Oracle):
        def forward_dense(self, images):
            return super().forward_dense(images) * math.nan

    with pytest.raises(UserError, match="NaN"):
        probe(Broken(4), scenes(20), scenes(10))


# in the comparison


def test_the_column_shows_only_when_a_run_has_it(tmp_path):
    common = ["knn", "linear_probe"]
    for name, wanted in (("with", [*common, "segmentation"]), ("without", common)):
        config = changed(CONFIG, figures=False)
        evaluate(Oracle(4), splits(), config, wanted, run_dir=tmp_path / name)
    alone = compare([tmp_path / "without"])
    assert "mIoU" not in alone.columns
    assert "mIoU" not in alone.rows[0]
    assert alone.notes == []
    both = compare([tmp_path / "with", tmp_path / "without"], tmp_path / "table")
    (record,) = [r for r in read_results(tmp_path / "with") if r["protocol"] == "segmentation"]
    assert [row["mIoU"] for row in both.rows] == [record["value"], None]
    assert any("without has no mIoU result" in note for note in both.notes)
    assert f"{100 * record['value']:.1f} %" in str(both)
