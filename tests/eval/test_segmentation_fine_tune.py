"""Fine-tuning with masks: masks follow the crops of their images, the whole network learns, one rate is chosen."""

import copy
import math

import pytest
import torch
from measuring import evaluate
from tiny import resident
from torch import nn

from selfsup.augment import ViewGenerator, ViewRecipe
from selfsup.data.base import Splits
from selfsup.errors import UserError
from selfsup.eval import Encoder, SegmentationFineTuneSettings, eval_config, segmentation_fine_tune
from selfsup.eval.protocols.segmentation_fine_tune import cut_masks
from selfsup.types import Normalization

COLOURS = torch.tensor([[90, 90, 90], [200, 40, 40], [40, 200, 40], [40, 40, 200]])


def scenes(count, seed=0, height=16, width=16):
    """Blocks of 4 × 4 pixels, each of one of four classes with its colour, under some noise."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 4, (count, height // 4, width // 4), generator=generator)
    truth = truth.repeat_interleave(4, 1).repeat_interleave(4, 2)
    images = COLOURS[truth].permute(0, 3, 1, 2)
    images = images + torch.randint(-30, 30, images.shape, generator=generator)
    return resident(
        images.to(torch.uint8),
        name="squares",
        image_size=height if height == width else (height, width),
        normalization=Normalization((0.4,) * 3, (0.3,) * 3),
        classes=("red", "green", "blue"),
        masks=truth.to(torch.uint8),
    )


class Small(nn.Module):
    """A network of one convolution, whose map has half the side."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 6, 2, 2)

    def forward_dense(self, images):
        return self.layer(images).relu()

    def forward(self, images):
        return self.forward_dense(images).mean((2, 3))


def tune(train, scored, holdout=None, **settings):
    settings = SegmentationFineTuneSettings(**{"epochs": 30, "batch_size": 8, "width": 8, **settings})
    encoder = Encoder(Small(), progress=False)
    before = copy.deepcopy(encoder.network.state_dict())
    result = segmentation_fine_tune(encoder, train, scored, settings, holdout=holdout, seed=3)
    assert all(torch.equal(value, before[name]) for name, value in encoder.network.state_dict().items())
    return result


def test_masks_are_cut_as_a_loop_over_pixels_cuts_them():
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 9, (3, 5, 7), generator=generator).to(torch.uint8)
    boxes = [[[0.5, 0, 0.25], [0, 0.4, 0.1]], [[-1, 0, 1], [0, 1, 0]], [[0.3, 0, 0.7], [0, 0.2, 0.8]]]
    found = cut_masks(masks, torch.tensor(boxes), (4, 6))
    for number, ((a, _, b), (_, c, d)) in enumerate(boxes):
        for i in range(4):
            for j in range(6):
                x, y = a * (j + 0.5) / 6 + b, c * (i + 0.5) / 4 + d
                assert found[number, i, j] == masks[number, math.floor(y * 5), math.floor(x * 7)]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 24)])
def test_masks_follow_the_crops_and_flips_of_their_images(height, width):
    data = scenes(40, height=height, width=width)
    every = torch.arange(40)
    recipe = ViewRecipe(["flip"], scale=(0.3, 0.9))
    views = ViewGenerator([recipe], [data.image_size], Normalization((0.0,) * 3, (1.0,) * 3))
    (view,) = views(data.read(every), 5, every)
    masks = cut_masks(data.read_masks(every), view.to_source, (height, width))
    nearest = (255 * view.image[:, None] - COLOURS[None, :, :, None, None]).pow(2).sum(2).argmin(1)
    assert (nearest == masks).float().mean() > 0.9  # between two blocks colours mix
    assert (view.to_source[:, 0, 0] < 0).any(), "some are flipped"


def test_the_whole_network_learns_and_the_rate_is_chosen_on_the_holdout():
    train, scored, held = scenes(64), scenes(20, 1), scenes(12, 2)
    result = tune(train, scored, held, learning_rates=[0.0, 0.02])
    assert result.learning_rate == 0.02
    assert list(result.tried) == [0.0, 0.02]
    assert result.tried[0.02] > result.tried[0.0]
    assert result.miou > 0.8
    assert sorted(result.per_class) == [0, 1, 2, 3]
    assert result.images == (64, 12, 20)
    assert not torch.equal(result.network.backbone.layer.weight, Small().layer.weight)
    again = tune(train, scored, held, learning_rates=[0.0, 0.02])
    assert again.miou == result.miou
    assert torch.equal(again.network.backbone.layer.weight, result.network.backbone.layer.weight)
    frozen = tune(train, scored, held, learning_rates=[0.02], layer_decay=1e-9)
    assert torch.allclose(frozen.network.backbone.layer.weight, Small().layer.weight, atol=1e-5)


def test_ignored_pixels_teach_nothing():
    train, scored = scenes(40), scenes(8, 1)
    wrong = train.read_masks(torch.arange(40)).clone()
    wrong[:, :, 8:] = 255
    half = train.with_masks(wrong)
    assert tune(half, scored, scenes(8, 2), learning_rates=[0.02]).miou > 0.7


def test_a_record_says_how_and_rectangles_are_whole():
    data = scenes(60, height=8, width=12)
    part = torch.arange(60).split([40, 8, 12])
    splits = Splits(data.subset(part[0]), data.subset(part[0]), data.subset(part[1]), data.subset(part[2]))
    config = eval_config(segmentation_fine_tune={"epochs": 2, "batch_size": 8, "width": 4}, figures=False)
    (record,) = evaluate(Small(), splits, config, ["segmentation_fine_tune"])
    assert (record.protocol, record.metric, record.split) == ("segmentation_fine_tune", "miou", "test")
    assert (record["train_images"], record["holdout_images"], record["test_images"]) == (40, 8, 12)
    assert list(record["mask_size"]) == [8, 12]
    assert set(record["per_class"]) == {"background", "red", "green", "blue"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rates": []}, "learning_rates: give at least one"),
        ({"batch_size": 64}, "batch_size is 64, and there are 36 images to train"),
        ({"learning_rates": [1e30], "epochs": 3}, "diverged"),
    ],
)
def test_what_a_person_can_mend(settings, message):
    with pytest.raises(UserError, match=message):
        tune(scenes(40), scenes(4, 1), **settings)
