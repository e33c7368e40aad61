"""Rotations between the features of two networks: planted ones are found, on images that they were not fitted on."""

import csv
from dataclasses import replace

import pytest
import torch
from tiny import resident
from torch import nn
from torch.nn import functional as F

from selfsup.data.base import Splits
from selfsup.errors import UserError
from selfsup.eval import Encoder
from selfsup.eval.feature_alignment import align
from selfsup.functional import orthogonal_map
from selfsup.report import save_aligned
from selfsup.types import Normalization


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(size, seed=0):
    return torch.linalg.qr(random(size, size, seed=seed))[0]


def test_a_planted_rotation_is_found():
    x, turned = random(40, 6), rotation(6, 1)
    torch.testing.assert_close(orthogonal_map(x, x @ turned), turned)
    torch.testing.assert_close(orthogonal_map(3 * x, x @ turned), turned)


@pytest.mark.parametrize(("first", "second"), [(4, 4), (3, 5), (5, 3)])
def test_no_other_map_that_keeps_lengths_is_closer(first, second):
    x, y = random(20, first), random(20, second, seed=1)
    found = orthogonal_map(x, y)
    gram = found @ found.T if first <= second else found.T @ found
    torch.testing.assert_close(gram, torch.eye(min(first, second), dtype=torch.float64))
    reached = ((x @ found) * y).sum()
    for seed in range(30):
        other = rotation(max(first, second), seed)[:first, :second]
        assert ((x @ other) * y).sum() < reached
    # small turns of the map, to both sides
    for seed in range(10):
        skew = random(first, first, seed=seed)
        turn = torch.matrix_exp(0.05 * (skew - skew.T))
        assert ((x @ turn @ found) * y).sum() < reached


class Linear(nn.Module):
    in_channels = 1

    def __init__(self, weight, scale=1.0, shift=0.0):
        super().__init__()
        self.weight = nn.Parameter(weight.float(), requires_grad=False)
        self.scale, self.shift = scale, shift

    def forward(self, images):
        return self.scale * images.flatten(1) @ self.weight + self.shift


def splits():
    images = torch.randint(0, 256, (120, 1, 3, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = resident(images, None, name="noise", image_size=3, normalization=Normalization((0.5,), (0.5,)))
    train, test = (data.subset(part) for part in torch.arange(120).split([80, 40]))
    return Splits(train, train, data.subset(torch.arange(0)), test)


def encoders():
    first = random(9, 5, seed=3)
    turned = Linear(first @ rotation(5, 4), scale=7.0, shift=2.0)
    unrelated = nn.Sequential(Linear(random(9, 6, seed=5)), nn.Tanh(), Linear(random(6, 5, seed=6)))
    unrelated.in_channels = 1
    networks = {"plain": Linear(first), "turned": turned, "other": unrelated}
    return {name: Encoder(network, progress=False) for name, network in networks.items()}


def test_rotated_networks_match_on_images_that_the_rotation_has_not_seen(tmp_path):
    found = {(one.source, one.target): one for one in align(encoders(), splits())}
    assert len(found) == 6
    for pair in (("plain", "turned"), ("turned", "plain")):
        one = found[pair]
        assert one.matched == 1
        assert one.cosine == pytest.approx(1, abs=1e-4)
        assert abs(one.other) < 0.1
        assert (one.images, one.fitted_on) == (40, 80)
    assert found["plain", "other"].matched < 0.9
    assert found["plain", "other"].cosine < 0.95
    save_aligned(list(found.values()), tmp_path)
    rows = list(csv.DictReader((tmp_path / "align.csv").open()))
    assert [(row["source"], row["target"]) for row in rows] == list(found)
    assert float(rows[0]["matched"]) == 1
    assert (tmp_path / "align.png").stat().st_size > 5000


def test_numbers_are_the_loop():
    parts, networks = splits(), encoders()
    one = next(a for a in align(networks, parts) if (a.source, a.target) == ("plain", "other"))
    features = []
    for name in ("plain", "other"):
        train, test = (networks[name].features(part).features.double() for part in (parts.train, parts.test))
        features.append([F.normalize(part - train.mean(0), dim=1) for part in (train, test)])
    u, _, vh = torch.linalg.svd(features[0][0].T @ features[1][0], full_matrices=False)
    rotated = F.normalize(features[0][1] @ (u @ vh), dim=1)
    cosines = [[float(a @ b) for b in features[1][1]] for a in rotated]
    own = [row[i] for i, row in enumerate(cosines)]
    other = [x for i, row in enumerate(cosines) for j, x in enumerate(row) if i != j]
    assert one.cosine == pytest.approx(sum(own) / 40, abs=1e-6)
    assert one.other == pytest.approx(sum(other) / len(other), abs=1e-6)
    assert one.matched == sum(max(row) == row[i] for i, row in enumerate(cosines)) / 40


def test_what_cannot_be_judged_is_a_sentence():
    parts = splits()
    with pytest.raises(UserError, match="at least two runs"):
        align({"one": next(iter(encoders().values()))}, parts)
    with pytest.raises(UserError, match=r"data\.holdout"):
        align(encoders(), replace(parts, test=None))
