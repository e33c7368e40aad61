"""Principal components of patches against numpy's SVD, the rules of sign and scale, and the object of drawn scenes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from measuring import evaluate
from tiny import resident
from torch import nn
from torch.nn import functional as F

from selfsup.data.base import Splits
from selfsup.errors import UserError
from selfsup.eval import eval_config
from selfsup.eval.protocols.patch_pca import (
    agreement,
    as_colours,
    colours_of_each,
    object_colours,
    patches_of,
    position_share,
    principal_components,
)
from selfsup.types import Normalization

RED, GREY = torch.tensor([220, 30, 30]), torch.tensor([110, 110, 110])


def scenes(count=12, size=24, labels=True, masks=True, seed=0):
    """A red square of 8 pixels at multiples of 4, away from the border, on grey under noise."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.zeros(count, size, size, dtype=torch.uint8)
    for number in range(count):
        top, left = (4 + 4 * torch.randint(0, 3, (2,), generator=generator)).tolist()
        truth[number, top : top + 8, left : left + 8] = 1 + number % 2
    images = torch.where(truth[..., None] > 0, RED, GREY).permute(0, 3, 1, 2)
    images = (images + torch.randint(-9, 10, images.shape, generator=generator)).to(torch.uint8)
    data = resident(
        images, torch.arange(count) % 2 if labels else None, name="squares", split="test", image_size=size,
        normalization=Normalization((0.4,) * 3, (0.3,) * 3), classes=("even", "odd"), masks=truth if masks else None,
    )  # fmt: skip
    return Splits(data, data, data.subset(torch.arange(0)), data)


class Cells(nn.Module):
    """The mean colour of cells of 4 pixels, each colour twice, and one channel that is always the same."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Conv2d(3, 1, 1)

    def forward(self, images):
        return self.forward_dense(images).mean((2, 3))

    def forward_dense(self, images):
        cells = F.avg_pool2d(images, 4)
        return torch.cat([cells, 0.5 * cells, torch.ones_like(cells[:, :1])], 1)


def skewed(rows, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64).exp() * torch.arange(1, width + 1)
    return x @ torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0] + 5


@pytest.mark.parametrize(("rows", "width", "count"), [(40, 6, 3), (5, 9, 3), (30, 2, 2)])
def test_components_are_those_of_the_singular_value_decomposition(rows, width, count):
    x = skewed(rows, width)
    found = principal_components(x, count)
    centred = x.numpy() - x.numpy().mean(0)
    _, sigma, axes = np.linalg.svd(centred, full_matrices=False)
    for k in range(count):
        scores = centred @ axes[k]
        sign = np.sign((scores**3).sum())
        np.testing.assert_allclose(found.axes[k], sign * axes[k], atol=1e-9)
        np.testing.assert_allclose(found.scores(x)[:, k], sign * scores, atol=1e-9)
        assert found.deviation[k].item() == pytest.approx(scores.std(), rel=1e-9)
        assert found.shares[k].item() == pytest.approx(sigma[k] ** 2 / (sigma**2).sum(), rel=1e-9)
    assert bool((found.scores(x).pow(3).sum(0) > 0).all())


def test_the_sign_is_that_of_the_data_and_follows_it():
    x = skewed(50, 4)
    one, mirrored = principal_components(x, 3), principal_components(-x, 3)
    torch.testing.assert_close(mirrored.axes, -one.axes)
    torch.testing.assert_close(mirrored.scores(-x), one.scores(x))
    even = torch.tensor([[-3.0, -1.0], [3.0, 1.0], [1.0, -3.0], [-1.0, 3.0]]) * torch.tensor([1.0, 0.5])
    for rows in (even, -even, even.flip(0)):  # scores that reach equally far to both sides
        assert float(principal_components(rows, 1).axes[0].max()) == float(
            principal_components(rows, 1).axes[0].abs().max()
        )


def test_colours_are_scores_in_standard_deviations():
    x = skewed(60, 5)
    components = principal_components(x, 3)
    centred = x.numpy() - x.numpy().mean(0)
    expected = np.clip(
        0.5 + centred @ components.axes.numpy().T / 4 / (centred @ components.axes.numpy().T).std(0), 0, 1
    )
    np.testing.assert_allclose(as_colours(components, x), expected, atol=1e-9)
    torch.testing.assert_close(as_colours(principal_components(100 * x, 3), 100 * x), as_colours(components, x))


def test_components_that_are_not_there_are_grey():
    x = torch.stack([torch.arange(6.0), torch.zeros(6), torch.zeros(6), torch.zeros(6)], 1)
    colours = as_colours(principal_components(x, 3), x)
    assert bool((colours[:, 1:] == 0.5).all())
    assert len(torch.unique(colours[:, 0])) > 3
    two = torch.rand(6, 2)
    assert bool((as_colours(principal_components(two, 2), two)[:, 2] == 0.5).all())
    with pytest.raises(UserError, match="collapsed"):
        principal_components(torch.full((5, 3), 0.1), 3)


def test_each_image_alone_is_no_other_images_matter():
    maps = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(colours_of_each(maps)[1:], colours_of_each(maps[1:]))
    own = patches_of(maps[1:2])
    torch.testing.assert_close(colours_of_each(maps)[1], as_colours(principal_components(own, 3), own).view(4, 4, 3))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_object_is_on_the_side_that_the_border_is_not_on(sign):
    maps = torch.zeros(2, 3, 6, 6)
    maps[0, :, 2:4, 2:5] = torch.tensor([4.0, 1.0, 0.0])[:, None, None]
    maps[1, :, 1:4, 3:5] = torch.tensor([4.0, -1.0, 0.0])[:, None, None]
    expected = maps[:, 0] > 0
    maps = sign * maps + 0.01 * torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))
    objects, colours = object_colours(maps)
    assert torch.equal(objects, expected)
    # of the objects alone the first component is what tells the two apart
    first, second = colours[0][objects[0]][:, 0], colours[1][objects[1]][:, 0]
    assert float(first.min()) > float(second.max()) or float(second.min()) > float(first.max())
    # most patches may be of the object
    mostly = torch.full((1, 2, 6, 6), 3.0)
    mostly[:, :, 0] = mostly[:, :, :, 0] = 0.0
    assert int(object_colours(mostly + 0.01 * torch.randn(mostly.shape))[0].sum()) == 25


def test_the_share_of_the_place_is_the_variance_of_its_means():
    maps = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(3)).double()
    total, between, middle = 0.0, 0.0, maps.mean((0, 2, 3))
    for row in range(3):
        for column in range(4):
            for image in range(5):
                total += float((maps[image, :, row, column] - middle).square().sum())
            between += 5 * float((maps[:, :, row, column].mean(0) - middle).square().sum())
    assert position_share(maps) == pytest.approx(between / total, rel=1e-12)
    assert position_share(maps[:1].expand(4, -1, -1, -1)) == pytest.approx(1.0)


def test_agreement_counts_pixels_of_known_class():
    objects = torch.tensor([[[True, False], [False, False]]]).expand(3, -1, -1)
    masks = torch.zeros(3, 4, 4, dtype=torch.uint8)
    masks[0, :2, :3] = 7
    masks[0, 0, 0] = 255
    masks[2, 3, 3] = 255
    assert agreement(objects, masks) == [3 / 5]


def test_a_picture_and_its_numbers(tmp_path):
    config = eval_config(patch_pca={"images": 5, "shown": 2}, batch_size=4)
    records = evaluate(Cells(), scenes(), config, ["patch_pca"], run_dir=tmp_path)
    values = {record["metric"]: record["value"] for record in records}
    assert list(values) == ["explained_variance", "position_share", "foreground_iou"]
    assert values["foreground_iou"] == 1.0
    assert 0.99 < values["explained_variance"] <= 1.0
    assert (records[2]["images"], records[2]["mask_images"], records[2]["map_size"]) == (10, 10, [6, 6])
    assert records[0]["components"][0] == max(records[0]["components"])
    assert (tmp_path / "figures" / "patch_pca.png").stat().st_size > 10_000
    alone = evaluate(Cells(), scenes(labels=False, masks=False), config, ["patch_pca"])
    assert {record["metric"]: record["images"] for record in alone} == {"explained_variance": 5, "position_share": 5}


class Placed(Cells):
    """The same, and a hundredfold of it the place."""

    def forward_dense(self, images):
        maps = super().forward_dense(images)
        where = torch.linspace(-1, 1, 6).expand(6, 6)
        return maps + 100 * torch.stack([where, where.T] + [torch.zeros(6, 6)] * 5)


def test_the_place_can_be_taken_off():
    found = {}
    for network, without in ((Placed(), False), (Placed(), True), (Cells(), True)):
        config = eval_config(patch_pca={"without_place": without}, batch_size=4)
        records = evaluate(network, scenes(40), config, ["patch_pca"])
        found[type(network), without] = {record["metric"]: record["value"] for record in records}
        assert records[2]["without_place"] is without
    placed, without, plain = found.values()
    assert placed["position_share"] == without["position_share"] > 0.99 > plain["position_share"]
    assert without["foreground_iou"] == pytest.approx(plain["foreground_iou"], abs=0.02)
    assert without["foreground_iou"] > placed["foreground_iou"] + 0.1


def test_without_places_the_object_is_on_the_side_that_reaches_farther():
    maps = 0.01 * torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    maps[0, 0, 0, :3] = maps[1, 0, 3, 1:4] = maps[2, 0, 5, 2:5] = maps[3, 0, 2, 2:4] = -3.0
    maps = maps - maps.mean(0)
    for sign in (1, -1):
        objects, _ = object_colours(sign * maps, border=False)
        assert bool(objects[maps[:, 0] < -1].all())


def test_what_has_no_patches_is_refused():
    with pytest.raises(UserError, match="no network"):
        evaluate(None, scenes(), eval_config(), ["patch_pca"])
    with pytest.raises(UserError, match="forward_dense"):
        evaluate(nn.Sequential(nn.Flatten(), nn.Linear(1728, 4)), scenes(), eval_config(), ["patch_pca"])
