"""Rare classes that a network merges with frequent ones, and some that it does not."""

import pytest
import torch
from measuring import changed, evaluate
from tiny import resident
from torch import nn

from selfsup.data.base import Splits
from selfsup.errors import UserError
from selfsup.eval import eval_config
from selfsup.eval.protocols.minorities import harms
from selfsup.types import Normalization

CONFIG = eval_config(batch_size=64, figures=False, cache=False)
COUNTS = (60, 50, 6, 8)


def splits(counts=COUNTS, tested=10, labels=True):
    """The first pixel says the class; the others are noise."""

    def part(numbers, seed):
        which = torch.cat([torch.full((n,), c) for c, n in enumerate(numbers)])
        noise = torch.randint(0, 60, (len(which), 1, 2, 2), generator=torch.Generator().manual_seed(seed))
        images = noise.to(torch.uint8)
        images[:, 0, 0, 0] = 40 * which
        statistics = Normalization((0.0,), (1.0,))
        return resident(images, which if labels else None, name="rare", image_size=2, normalization=statistics)

    train = part(counts, 0)
    return Splits(train, train, train.subset(torch.arange(0)), part([tested] * len(counts), 1))


class Coded(nn.Module):
    """The code of each class, with a little of the noise."""

    in_channels = 1

    def __init__(self, codes, noise=0.02):
        super().__init__()
        self.codes, self.noise = torch.tensor(codes), noise

    def forward(self, images):
        which = (images[:, 0, 0, 0] * 255 / 40).round().long()
        return torch.cat([self.codes[which], self.noise * images[:, 0, 0, 1:]], 1)


def by_metric(records):
    return {r.metric: r for r in records}


def test_rare_classes_that_are_merged_lose():
    # the rare classes 2 and 3 have the code of one frequent class each: half of their images, at best, are theirs
    merged = Coded([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0.02], [0, 1.0, 0, 0.02]], noise=0.5)
    apart = Coded([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]])
    lost, fine = (by_metric(evaluate(network, splits(), CONFIG, ["minorities"])) for network in (merged, apart))
    assert fine["allocation_gap"].value == 0
    assert {one["kept"] for one in fine["allocation_gap"]["classes"].values()} == {1.0}
    found = lost["allocation_gap"]["classes"]
    assert [found[c]["confusable"] for c in "0123"] == [2, 3, 0, 1]
    assert [found[c]["count"] for c in "0123"] == list(COUNTS)
    assert all(one["collapse"] > 0.9 for one in found.values())
    assert lost["allocation_gap"]["centre_images"] == 6


def test_gaps_are_the_halves_of_the_table():
    half = Coded([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 1.0, 0]], noise=0.3)
    records = by_metric(evaluate(half, splits(), CONFIG, ["minorities"], seed=2))
    table = records["allocation_gap"]["classes"]
    # the two rare classes are each other's confusable one
    assert (table["2"]["confusable"], table["3"]["confusable"]) == (3, 2)
    kept, collapse = ({c: one[key] for c, one in table.items()} for key in ("kept", "collapse"))
    gap = (kept["0"] + kept["1"] - kept["2"] - kept["3"]) / 2
    assert records["allocation_gap"].value == pytest.approx(gap)
    assert gap > 0.1
    merged = (collapse["2"] + collapse["3"] - collapse["0"] - collapse["1"]) / 2
    assert records["collapse_gap"].value == pytest.approx(merged)
    assert merged > 0.5


def test_harms_are_the_loop():
    generator = torch.Generator().manual_seed(0)
    train, asked = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (40, 30))
    known, labels = torch.arange(40) % 4 * 2, torch.arange(30) % 4 * 2
    classes = torch.tensor([0, 2, 4, 6])
    alike, kept, confusable = harms((train, known), (asked, labels), classes, 10)
    mean = train.mean(0)

    def unit(row):
        return (row - mean) / (row - mean).norm()

    centres = [sum(unit(row) for row in train[known == c]) / 10 for c in classes]
    centres = [c / c.norm() for c in centres]
    for i, label in enumerate(classes.tolist()):
        cosines = [float(centres[i] @ centres[j]) if j != i else -2.0 for j in range(4)]
        other = cosines.index(max(cosines))
        assert confusable[i] == other
        assert alike[i].item() == pytest.approx(max(cosines))
        own = [unit(row) for row in asked[labels == label]]
        assert kept[i].item() == pytest.approx(sum(float(r @ centres[i] > r @ centres[other]) for r in own) / len(own))


def test_refusals_and_the_picture(tmp_path):
    network = Coded([[1.0, 0], [0, 1.0], [1.0, 1.0], [1.0, -1.0]])
    with pytest.raises(UserError, match="same number of training images"):
        evaluate(network, splits(counts=(20, 20, 20, 20)), CONFIG, ["minorities"])
    with pytest.raises(UserError, match="a class has 3 training images"):
        evaluate(network, splits(counts=(20, 20, 3, 20)), CONFIG, ["minorities"])
    with pytest.raises(UserError, match="no label"):
        evaluate(network, splits(labels=False), CONFIG, ["minorities"])
    evaluate(network, splits(), changed(CONFIG, figures=True), ["minorities"], run_dir=tmp_path)
    assert "minorities.png" in {path.name for path in (tmp_path / "figures").iterdir()}
