from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tiny import resident

from selfsup.augment import save_views_figure
from selfsup.errors import UserError
from selfsup.eval import FeatureSet
from selfsup.eval.shown import NeighbourImages, feature_map, nearest_images
from selfsup.report import save, training_curves
from selfsup.report.charts.feature_map import feature_map_picture
from selfsup.report.charts.neighbours import neighbour_grid
from selfsup.types import Normalization

GREEN, RED, GREY = (42, 157, 74), (209, 53, 43), (136, 136, 136)


def pixels(path):
    picture = torch.tensor(list(Image.open(path).convert("RGB").tobytes()), dtype=torch.uint8)
    return picture.view(-1, 3)


def share(path, colour):
    """Fraction of the pixels that have exactly this colour."""
    return (pixels(path) == torch.tensor(colour, dtype=torch.uint8)).all(1).double().mean().item()


def test_every_logged_quantity_gets_a_panel(tmp_path):
    (tmp_path / "one.csv").write_text("epoch,step,train/loss\n0,0,3.0\n0,10,2.0\n")
    (tmp_path / "more.csv").write_text(
        "epoch,health/rank_me,lr,online/knn,step,train/loss\n0,,0.1,,0,3.0\n0,,,,10,2.0\n0,5.5,,0.5,10,\n"
    )
    one = Image.open(save(training_curves(tmp_path / "one.csv"), tmp_path / "figures" / "one.png"))
    more = Image.open(save(training_curves(tmp_path / "more.csv"), tmp_path / "figures" / "more.png"))
    # four panels in rows of three
    assert (more.width, more.height) == pytest.approx((3 * one.width, 2 * one.height), abs=6)


@pytest.mark.parametrize("text", ["", "epoch,step,train/loss\n", "epoch,step,train/loss\n0,0,\n"])
def test_curves_of_nothing(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(UserError, match="no logged values"):
        training_curves(tmp_path / "metrics.csv")
    with pytest.raises(UserError, match="does not exist"):
        training_curves(tmp_path / "other.csv")


@pytest.mark.parametrize(
    ("neighbour", "present", "absent"),
    [([[1, 1]], [GREEN], [RED, GREY]), ([[0, 2]], [RED], [GREEN, GREY]), ([[1, 2]], [GREEN, RED], [GREY])],
)
def test_frames_say_whether_the_class_is_right(tmp_path, neighbour, present, absent):
    shown = NeighbourImages(
        torch.full((1, 3, 4, 4), 200, dtype=torch.uint8),
        torch.full((1, 2, 3, 4, 4), 100, dtype=torch.uint8),
        query_labels=torch.tensor([1]),
        neighbour_labels=torch.tensor(neighbour),
    )
    path = save(neighbour_grid(shown), tmp_path / "grid.png")
    assert all(share(path, colour) > 0.002 for colour in present)
    assert all(share(path, colour) == 0 for colour in absent)
    assert share(path, (100, 100, 100)) > 0.2, "the neighbours themselves"


def dataset(values, classes=None):
    images = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 5, 5)
    statistics = Normalization((0.5,), (0.5,))
    return resident(images, None, name="flat", split="train", image_size=5, normalization=statistics, classes=classes)


def test_nearest_images_are_found_by_their_index(tmp_path):
    # the bank lacks the first image of its dataset, as when one could not be decoded
    bank = FeatureSet(torch.tensor([[1.0, 0], [0, 1]]), None, torch.tensor([1, 2]))
    queries = FeatureSet(torch.tensor([[0.1, 1.0]]), None, torch.tensor([0]))
    shown = nearest_images((bank, dataset([10, 90, 170])), (queries, dataset([230])), k=1)
    path = save(neighbour_grid(shown), tmp_path / "near.png")
    assert share(path, (170, 170, 170)) > 0.1
    assert share(path, (230, 230, 230)) > 0.1
    assert share(path, (10, 10, 10)) < 0.01
    assert share(path, (90, 90, 90)) < 0.01


def test_map_has_a_colour_for_each_class(tmp_path):
    features = torch.randn(30, 60, generator=torch.Generator().manual_seed(0))
    blue, orange = (31, 119, 180), (255, 127, 14)
    labels = torch.arange(30) % 2
    images = dataset([0] * 30, ("a", "b"))
    maps = [feature_map(FeatureSet(features, part, images.index), images, "test") for part in (labels, None)]
    with_labels, without = (save(feature_map_picture(one), tmp_path / f"{i}.png") for i, one in enumerate(maps))
    assert share(with_labels, blue) > 0
    assert share(with_labels, orange) > 0
    assert share(without, orange) == 0
    assert share(without, (59, 110, 165)) > 0


def test_map_is_the_same_for_the_same_seed():
    features = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    images = dataset([0] * 20)
    some = FeatureSet(features, None, images.index)
    first, again, other = (feature_map(some, images, "test", seed).points for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(UserError, match="at least 5"):
        feature_map(FeatureSet(features[:4], None, images.index[:4]), images, "test")


@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_a_figure_that_finds_no_room_is_a_sentence_and_leaves_the_old_one(name, tmp_path, monkeypatch):
    figure = Figure(figsize=(1, 1))
    old = save(figure, tmp_path / name).read_bytes()
    assert old[:5] in (b"\x89PNG\r", b"<?xml")

    def full(self, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    draws = [
        lambda path: save(figure, path),
        lambda path: save_views_figure(torch.zeros(1, 3, 8, 8), [], path, Normalization((0.5,) * 3, (0.2,) * 3)),
    ]
    for draw in draws:
        with pytest.raises(UserError, match=rf"{name} could not be written \(No space left"):
            draw(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == old
