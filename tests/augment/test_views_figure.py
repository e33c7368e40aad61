"""The figure shows the right images and the crops in the right place."""

import pytest
import torch
from matplotlib.image import imread

from selfsup.augment import ViewGenerator, ViewRecipe, save_views_figure, two_crop
from selfsup.augment.figure import _denormalize
from selfsup.types import Normalization


@pytest.mark.parametrize("channels", [1, 3])
def test_denormalisation_inverts_the_generators(channels):
    images = torch.rand(3, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    recipe = ViewRecipe(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_p=0.0, jitter_p=0.0, gray_p=0.0)
    statistics = Normalization((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    view = ViewGenerator([recipe], [16], statistics)(images, seed=0)[0]
    torch.testing.assert_close(_denormalize(view.image[0], statistics), images[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_figure_has_a_row_per_image_and_a_column_per_view(tmp_path, channels):
    statistics = Normalization((0.5,), (0.25,))
    images = torch.full((3, channels, 20, 30), 51, dtype=torch.uint8)
    views = two_crop("byol", 16, statistics)(images, seed=0)
    save_views_figure(images, views, tmp_path / "new" / "small.png", statistics, count=1)
    save_views_figure(images, views, tmp_path / "new" / "large.png", statistics)
    small, large = (imread(tmp_path / "new" / f"{name}.png") for name in ("small", "large"))
    assert small.shape[1] == large.shape[1]
    assert large.shape[0] > 2 * small.shape[0]
    # the originals, grey 0.2, cover part of the first column
    first_column = large[:, : large.shape[1] // 3, :3]
    assert (abs(first_column - 0.2) < 0.01).all(axis=2).mean() > 0.2


def test_the_crop_is_drawn_where_it_was_taken(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr("matplotlib.axes.Axes.plot", lambda axis, x, y, *rest, **style: lines.append((x, y)))
    images = torch.rand(1, 3, 20, 40)
    views = two_crop("simclr", 16)(images, seed=3)
    save_views_figure(images, views, tmp_path / "views.png", Normalization((0.5,), (0.2,)))
    x, y = lines[0]  # the outline of the first view; the outer edges of the image lie at -0.5 and 39.5, 19.5
    (width, _, left), (_, height, top) = views[0].to_source[0].double().tolist()
    assert (x.min(), x.max()) == pytest.approx(sorted([left * 40 - 0.5, (left + width) * 40 - 0.5]), abs=1e-4)
    assert (y.min(), y.max()) == pytest.approx([top * 20 - 0.5, (top + height) * 20 - 0.5], abs=1e-4)
    assert (x[0], y[0]) == pytest.approx([left * 40 - 0.5, top * 20 - 0.5], abs=1e-4)
