"""Out-of-distribution detection against loops over pairs, and closed forms."""

import numpy as np
import pytest
import torch
from measuring import evaluate
from PIL import Image
from tiny import resident

from selfsup.data.base import Splits
from selfsup.data.sources.image_folder import ImageFolderConfig
from selfsup.data.splits import load_splits
from selfsup.errors import UserError
from selfsup.eval import FeatureSet, eval_config
from selfsup.eval.protocols.ood import auroc, false_positives, ood_scores
from selfsup.types import Normalization


class Unused(torch.nn.Module):
    """A network that must not be run."""

    dim = 3

    def forward(self, images):
        raise AssertionError("it was run before the settings were looked at")


def test_auroc_is_a_loop_over_pairs_with_halves_for_equal_scores():
    generator = torch.Generator().manual_seed(0)
    inside, outside = (torch.randint(0, most, (n,), generator=generator).double() for most, n in ((9, 40), (14, 25)))
    pairs = [(a < b) + (a == b) / 2 for a in inside.tolist() for b in outside.tolist()]
    assert auroc(inside, outside) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert auroc(outside, inside) == pytest.approx(1 - auroc(inside, outside))
    assert auroc(torch.zeros(3), torch.ones(2)) == 1
    assert auroc(torch.ones(3), torch.ones(2)) == 0.5


def test_false_positives_at_the_lowest_threshold_that_keeps_95_of_100():
    inside = torch.arange(1, 101).double()
    for outside, expected in (([95.0, 95.5, 96.0, 1.0], 0.5), ([200.0], 0), ([0.0], 1)):
        assert false_positives(inside.flip(0), torch.tensor(outside)) == expected
    few = torch.tensor([1.0, 2.0, 3.0])
    assert false_positives(few, torch.tensor([2.5, 3.0, 3.5, 4.0])) == 0.5, "95 % of three are three"


def test_scores_are_distances_to_the_kth_neighbour():
    generator = torch.Generator().manual_seed(1)
    train, inside, outside = (FeatureSet(torch.randn(n, 5, generator=generator)) for n in (30, 7, 6))
    unit = torch.nn.functional.normalize
    found = ood_scores(train, inside, outside, [1, 4])
    for place, part in enumerate((inside, outside)):
        table = 1 - unit(part.features.double(), dim=1) @ unit(train.features.double(), dim=1).T
        for k, scores in zip((1, 4), found, strict=True):
            assert torch.allclose(scores[place], table.sort(1).values[:, k - 1], atol=1e-6)
    with pytest.warns(UserWarning, match="uses all 30 features"):
        ood_scores(train, inside, outside, [50])
    for ks, other, message in (([0], outside, r"eval\.ood\.k"), ([1], FeatureSet(torch.randn(3, 4)), "dimensions")):
        with pytest.raises(UserError, match=message):
            ood_scores(train, inside, other, ks)


def test_a_folder_of_bright_images_is_told_from_dark_ones(tmp_path):
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (60, 3, 6, 6), generator=generator)
    images[:, :, 3:] //= 8  # dark below
    data = resident(
        images.to(torch.uint8), name="dark", image_size=6, normalization=Normalization((0.3,) * 3, (0.2,) * 3)
    )
    part = torch.arange(60).split([40, 5, 15])
    splits = Splits(data.subset(part[0]), data.subset(part[0]), data.subset(part[1]), data.subset(part[2]))
    for number in range(8):
        Image.effect_noise((6, 6), 60).convert("RGB").save(tmp_path / f"{number}.png")
    config = eval_config(ood={"data": str(tmp_path), "k": [5]}, figures=False)
    records = evaluate(None, splits, config, ["ood"])
    assert [(r.metric, r.value) for r in records] == [("auroc", 1.0), ("fpr95", 0.0)]
    assert (records[0]["other_images"], records[0]["k"], records[0].split) == (8, 5, "test")
    for name, message in ((None, "is not set"), ("svnh", "neither a source nor a folder. Did you mean 'svhn'")):
        with pytest.raises(UserError, match=message):
            evaluate(Unused(), splits, eval_config(ood={"data": name}), ["ood"])


def test_the_other_files_are_read_as_those_of_the_run(tmp_path):
    draw = np.random.default_rng(0)
    for folder, count in (("own/train", 12), ("own/test", 4), ("deep", 5)):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            values = draw.uniform(0, 4095, (2, 8, 8)).astype(np.float32)
            np.save(tmp_path / folder / f"{number}.npy", values)
    for number in range(5):  # the other images are training images again, at no distance from them
        np.save(tmp_path / "deep" / f"{number}.npy", np.load(tmp_path / "own" / "train" / f"{number}.npy"))
    given = {"image_size": 8, "value_range": [0, 4095], "holdout": 0.0, "mean": [0.4, 0.5], "std": [0.2, 0.3]}
    splits = load_splits(ImageFolderConfig(root=str(tmp_path / "own"), **given))
    assert splits.train.form.value_range == (0, 4095)
    records = evaluate(
        None, splits, eval_config(ood={"data": str(tmp_path / "deep"), "k": [1]}, figures=False), ["ood"]
    )
    assert (records[0].metric, records[0].value) == ("auroc", 0.0)


def test_colour_files_become_grey_beside_a_run_of_one_channel(tmp_path):
    draw = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (30, 1, 6, 6), generator=draw).to(torch.uint8)
    data = resident(images, name="grey", image_size=6, normalization=Normalization((0.3,), (0.2,)))
    part = torch.arange(30).split([20, 2, 8])
    splits = Splits(data.subset(part[0]), data.subset(part[0]), data.subset(part[1]), data.subset(part[2]))
    for number in range(3):
        Image.effect_noise((6, 6), 60).convert("RGB").save(tmp_path / f"{number}.png")
    records = evaluate(None, splits, eval_config(ood={"data": str(tmp_path), "k": [1]}, figures=False), ["ood"])
    assert records[0]["other_images"] == 3
