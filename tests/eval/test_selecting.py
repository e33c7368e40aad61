"""Images that stand for all: sums pixel by pixel, planted cases, and the command with what it writes."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfsup.cli import main
from selfsup.config import load_config
from selfsup.data import load_splits
from selfsup.errors import UserError
from selfsup.eval import select_images
from selfsup.eval.selecting import representatives


def worth(rows: Tensor, chosen: list[int]) -> float:
    """Return what the choice is judged by: how like the images that are left out are to those that are kept."""
    left = [row for row in range(len(rows)) if row not in chosen]
    return sum(max(0.0, float(rows[i] @ rows[j])) for i in left for j in chosen)


def test_each_image_is_the_one_that_adds_most() -> None:
    rows = F.normalize(torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), dim=1).double()
    chosen: list[int] = []
    for row in representatives(rows.float(), 7).tolist():
        gains = {
            other: worth(rows, [*chosen, other]) - worth(rows, chosen) for other in range(12) if other not in chosen
        }
        assert gains[row] == pytest.approx(max(gains.values()), abs=1e-5)
        chosen.append(row)


def test_two_of_a_kind_are_not_chosen_before_the_others() -> None:
    """Of two groups the larger is first; its next image is worth less than the first of the smaller one."""
    corners = torch.eye(3)[[0] * 4 + [1] * 3 + [2]]
    first, second = representatives(corners, 2).tolist()
    assert (first in range(4), second in range(4, 7)) == (True, True)


def test_every_cluster_gives_its_share() -> None:
    generator = torch.Generator().manual_seed(1)
    centres = 10 * torch.eye(6)[:3]
    sizes = [40, 20, 10]
    features = torch.cat(
        [centre + torch.randn(size, 6, generator=generator) for centre, size in zip(centres, sizes, strict=True)]
    )
    rows = select_images(features, 0.2, 3, progress=False)
    assert torch.equal(rows, rows.unique())
    counts = [
        int(((rows >= start) & (rows < start + size)).sum()) for start, size in zip((0, 40, 60), sizes, strict=True)
    ]
    assert counts == [8, 4, 2]
    again = select_images(3 * features, 0.2, 3, progress=False)
    assert torch.equal(rows, again)


def test_the_greedy_choice_is_near_the_best() -> None:
    rows = F.normalize(torch.randn(9, 2, generator=torch.Generator().manual_seed(3)), dim=1)
    best = max(worth(rows, list(some)) for some in itertools.combinations(range(9), 3))
    assert worth(rows, representatives(rows, 3).tolist()) >= 0.9 * best


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, float("nan")])
def test_a_share_is_between_nothing_and_everything(share: float) -> None:
    with pytest.raises(UserError, match=r"share is .*; give a share of the images above 0 and below 1"):
        select_images(torch.randn(8, 3), share, 2)


def test_there_are_no_more_clusters_than_images() -> None:
    with pytest.raises(UserError, match="clusters is 9; give a number from 1 to that of the images, 8"):
        select_images(torch.randn(8, 3), 0.5, 9)


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="NaN or infinite for 1 of 8"):
        select_images(torch.randn(8, 3).index_fill(0, torch.tensor([2]), torch.nan), 0.5, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of two colours for training, and some for testing."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 20), ("test", 6)):
        for number in range(count):
            place = tmp_path / "pictures" / split / ("red" if number % 2 else "blue")
            place.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(0, 80, (16, 16, 3), generator=generator, dtype=torch.uint8)
            pixels[..., 0 if number % 2 else 2] += 150
            Image.fromarray(pixels.numpy()).save(place / f"{number:02}.png")
    return tmp_path / "pictures"


def test_the_list_of_the_command_is_what_training_takes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["data=image_folder", f"data.root={folder}", "data.image_size=16", "data.holdout=0.25"]
    network = ["backbone=resnet_tiny", "backbone.width=4"]
    whole = load_splits(load_config([*data, "method=simclr"]).data)
    assert main(["select", "untrained", *network, *data, "--share", "0.3", "--clusters", "2", "--out", "list.txt"]) == 0
    said = capsys.readouterr().out
    chosen = load_splits(load_config([*data, "data.files=list.txt", "method=simclr"]).data)
    assert 3 <= len(chosen.train) <= 7
    assert f"with {len(chosen.train)} of {len(whole.train)} training images and all others" in said
    for before, now in ((whole.holdout, chosen.holdout), (whole.test, chosen.test)):
        assert before is not None
        assert now is not None
        assert [now.path(row) for row in range(len(now))] == [before.path(row) for row in range(len(before))]
    assert f"next: selfsup train data=image_folder data.root={folder} data.files=list.txt" in said

    assert main(["select", "untrained", *network, *data, "--share", "0.3", "--out", "list.txt"]) == 2
    assert "--out: list.txt exists and is not overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["untrained", "data=shapes"], "Write: selfsup select RUN --share 0.2 --out list.txt"),
        (["untrained", "data=shapes", "--share", "much", "--out", "a"], "--share=much is no number"),
        (["untrained", "data=shapes", "--share", "0.2", "--clusters", "2.5", "--out", "a"], "is no whole number"),
        (["untrained", "data=digits", "--share", "0.2", "--out", "a"], "data=digits holds no files of images"),
    ],
)
def test_what_cannot_be_chosen_is_said(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["select", *words, "backbone=resnet_tiny"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("a").exists()
