"""A bag of patches: the mean over patches by hand, and what the protocol makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from measuring import evaluate
from test_protocols import splits
from torch import nn
from torch.nn import functional as F

from selfsup.errors import UserError
from selfsup.eval import Encoder, eval_config, extract_splits, knn
from selfsup.eval.protocols.bag_of_patches import PatchBag, first_layer


class Flat(nn.Module):
    """Another feature of every pixel, and a curve, so that the mean of features is not that of pixels."""

    def __init__(self, pixels=36):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(pixels, 8)

    def forward(self, images):
        return self.inner(images.flatten(1)).tanh()


def head():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def by_hand(network, images, patches, seed, after=lambda x: x):
    """A quarter of the area: half of each side, at places that the seed draws, the last one included."""
    starts = torch.rand(patches, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    height, width = images.shape[-2:]
    rows = []
    for image in images:
        features = []
        for down, right in starts.tolist():
            top = min(int(down * (height // 2 + 1)), height // 2)
            left = min(int(right * (width // 2 + 1)), width // 2)
            patch = image[:, top : top + height // 2, left : left + width // 2]
            large = F.interpolate(patch[None], (height, width), mode="bilinear", antialias=True)
            features.append(after(network(large))[0])
        rows.append(sum(features) / patches)
    return torch.stack(rows)


@pytest.mark.parametrize("shape", [(1, 6, 6), (1, 4, 10)])
def test_the_feature_is_the_mean_over_patches(shape):
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
    network = Flat(shape[1] * shape[2])
    bag = PatchBag(network, 7, 0.25, seed=5)
    torch.testing.assert_close(bag(images), by_hand(network, images, 7, 5))
    assert not torch.allclose(bag(images), network(images), atol=1e-3)


def test_whole_images_are_the_network_itself():
    images = torch.randn(3, 1, 6, 6)
    network = Flat()
    torch.testing.assert_close(PatchBag(network, 3, 1.0, seed=0)(images), network(images))


def test_every_place_is_reached():
    seen = torch.zeros(6, 6)

    class Watch(nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    for place in range(36):
        image = torch.zeros(1, 1, 6, 6)
        image.view(-1)[place] = 1.0
        seen.view(-1)[place] = PatchBag(Watch(), 200, 0.25, seed=0)(image)[0, 0]
    assert (seen > 0).all()


def test_records_are_of_the_mean_features_of_network_or_head():
    network = Flat()
    parts, own = splits(), head().eval()
    for layer, first in (("backbone", None), ("head", own[:3])):
        config = eval_config(bag_of_patches={"patches": 3, "layer": layer}, figures=False, batch_size=16)
        records = evaluate(network, parts, config, ["bag_of_patches"], epoch=7, seed=1, head=own)
        assert [(r["classifier"], r["layer"], r["patches"]) for r in records] == [
            ("knn", layer, 3),
            ("linear", layer, 3),
        ]
        encoder = replace(Encoder(PatchBag(network, 3, 0.25, 1, first), progress=False), batch_size=16)
        features = extract_splits(encoder, parts)
        expected = knn(features.train, features.test, k=(20,), temperature=0.07)
        assert records[0]["value"] == expected[20]
        assert records[1]["dim"] == records[0]["dim"] == (8 if first is None else 5)
        assert records[1]["value"] > 0.5  # of three classes that stripes tell apart


def test_a_checkpoint_without_a_hidden_layer_is_named():
    for head_ in (None, nn.Sequential(nn.Linear(8, 3))):
        with pytest.raises(UserError, match=r"eval\.bag_of_patches\.layer=head"):
            first_layer(head_)
    torch.testing.assert_close(first_layer(head().eval())(torch.ones(2, 8)), head().eval()[:3](torch.ones(2, 8)))
