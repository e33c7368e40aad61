"""Outlier tokens: the rule by a loop, planted norms found where they are, and networks that have no tokens."""

from __future__ import annotations

import statistics

import pytest
import torch
from measuring import evaluate
from tiny import resident
from torch import nn

from selfsup.data.base import Splits
from selfsup.errors import UserError
from selfsup.eval import eval_config
from selfsup.eval.protocols.outlier_tokens import OutlierTokensSettings, histogram, median, threshold
from selfsup.nn.backbone import BackboneConfig
from selfsup.nn.building import build_backbone
from selfsup.types import Normalization

PLAIN = Normalization((0.5,) * 3, (0.25,) * 3)


def splits(count=10, size=16):
    images = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0))
    data = resident(
        images.to(torch.uint8), torch.arange(count) % 2, name="noise", split="train", image_size=size,
        normalization=PLAIN,
    )  # fmt: skip
    return Splits(data, data, data.subset(torch.arange(0)), data)


def vit(**kwargs):
    torch.manual_seed(0)
    own = {"img_size": 16, "patch_size": 4, "depth": 3, "embed_dim": 12, "num_heads": 3} | kwargs
    return build_backbone(BackboneConfig("vit_tiny_patch16_224", kwargs=own), 3, PLAIN)


class Plant(nn.Module):
    """A block that multiplies patch 6 of every second image."""

    def __init__(self, block, factor, prefix):
        super().__init__()
        self.block, self.factor, self.prefix = block, factor, prefix

    def forward(self, x, *args, **kwargs):
        x = self.block(x, *args, **kwargs).clone()
        x[::2, self.prefix + 6] *= self.factor
        return x


def planted(factor=100.0, **kwargs):
    backbone = vit(**kwargs)
    backbone.network.blocks[1] = Plant(backbone.network.blocks[1], factor, backbone.network.num_prefix_tokens)
    return backbone


def shares(records):
    return {r["layer"]: r["value"] for r in records if r["metric"] == "outlier_share"}


@pytest.mark.parametrize("count", [7, 8])
def test_the_threshold_is_median_and_deviation_by_a_loop(count):
    norms = torch.rand(2, count, generator=torch.Generator().manual_seed(count)).square() * 9
    values = norms.flatten().tolist()
    middle = statistics.median(values)
    deviation = statistics.median([abs(value - middle) for value in values])
    assert median(norms) == pytest.approx(middle)
    assert threshold(norms, OutlierTokensSettings(deviations=2.5)) == pytest.approx(middle + 2.5 * deviation, rel=1e-6)
    assert threshold(norms, OutlierTokensSettings(norm=3.5)) == 3.5
    assert threshold(3 * norms, OutlierTokensSettings()) == pytest.approx(3 * threshold(norms, OutlierTokensSettings()))


def test_a_histogram_counts_every_value():
    values = torch.tensor([1.0, 1.5, 2.0, 25.0])
    found = histogram(values)
    assert (found["edges"][0], found["edges"][-1], sum(found["counts"])) == (1.0, 25.0, 4)
    assert (found["counts"][0], found["counts"][1], found["counts"][2], found["counts"][-1]) == (1, 1, 1, 1)
    assert sum(histogram(torch.ones(5))["counts"]) == 5


@pytest.mark.parametrize("registers", [0, 3])
def test_planted_norms_are_found_after_their_block_and_not_before(registers, tmp_path):
    records = evaluate(planted(reg_tokens=registers), splits(), eval_config(), ["outlier_tokens"], run_dir=tmp_path)
    expected = 5 / (10 * 16)  # one patch of sixteen in every second of ten images; they stay in the residual stream
    assert shares(records) == {"blocks.0": 0.0, "blocks.1": expected, "blocks.2": expected}
    last = records[-1]
    assert torch.tensor(last["places"]).nonzero().tolist() == [[1, 2]]
    assert last["places"][1][2] == 0.5
    assert (last["registers"], len(last["prefix_norms"]), last["images"]) == (registers, 1 + registers, 10)
    (ratio,) = [r["value"] for r in records if r["metric"] == "norm_ratio"]
    assert ratio == pytest.approx(last["largest"] / last["median"])
    assert 50 < ratio < 200
    assert (tmp_path / "figures" / "outlier_tokens.png").stat().st_size > 10_000


def test_norms_are_those_before_the_final_norm():
    backbone, data = planted(), splits()
    records = evaluate(backbone, data, eval_config(outlier_tokens={"norm": 1e-6}), ["outlier_tokens"])
    assert set(shares(records).values()) == {1.0}
    images = (data.train.read(torch.arange(10)).float() / 255 - 0.5) / 0.25
    kept = []
    handle = backbone.network.norm.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        backbone.eval()(images)
    handle.remove()
    norms = kept[0][:, 1:].double().square().sum(-1).sqrt()
    assert records[-1]["largest"] == pytest.approx(norms.max().item(), rel=1e-5)
    assert records[-1]["median"] == pytest.approx(statistics.median(norms.flatten().tolist()), rel=1e-5)
    assert records[-1]["rule"] == "above 1e-06"


def test_a_network_without_outliers_has_none():
    assert set(shares(evaluate(vit(), splits(), eval_config(), ["outlier_tokens"])).values()) == {0.0}


def test_networks_without_tokens_are_refused_by_name():
    resnet = build_backbone(BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1]), 3, PLAIN)
    with pytest.raises(UserError, match="ResNet is none"):
        evaluate(resnet, splits(), eval_config(), ["outlier_tokens"])
    with pytest.raises(UserError, match="Sequential is none"):
        evaluate(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), splits(), eval_config(), ["outlier_tokens"])
    with pytest.raises(UserError, match="no network"):
        evaluate(None, splits(), eval_config(), ["outlier_tokens"])
