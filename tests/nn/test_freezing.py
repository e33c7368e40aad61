"""Frozen layers: which weights they are, and that they run as in evaluation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from selfsup.errors import UserError
from selfsup.nn import Backbone, BackboneConfig, MomentumEncoder, build_backbone, freeze

NARROW = BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1])


def network() -> Backbone:
    torch.manual_seed(0)
    return build_backbone(NARROW, 3)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["conv1"], {"conv1.weight"}),
        (["conv1.weight", "bn1"], {"conv1.weight", "bn1.weight", "bn1.bias"}),
        (["layer[12]"], {"layer1", "layer2"}),
        (["*.bn?"], {".bn1.", ".bn2."}),
        (["bn1.*"], {"bn1.weight", "bn1.bias"}),
    ],
)
def test_names_stand_for_all_below_them(names: list[str], expected: set[str]) -> None:
    backbone = network()
    frozen = freeze(backbone, names)
    known = dict(backbone.network.named_parameters())
    wanted = {
        key
        for key in known
        if key in expected or key.split(".")[0] in expected or any(part in key for part in expected if part[0] == ".")
    }
    assert set(frozen) == wanted
    assert {key for key, value in known.items() if not value.requires_grad} == wanted


@pytest.mark.parametrize("names", [["bn1"], ["bn1.*"], ["bn1.weight", "bn1.bias"]])
def test_a_layer_whose_weights_are_all_frozen_keeps_its_statistics(names: list[str]) -> None:
    backbone = network()
    freeze(backbone, names)
    copied = copy.deepcopy(backbone)
    for one in (backbone, copied):
        one.eval()
        one.train()
        before = {key: value.clone() for key, value in one.network.named_buffers()}
        one(3 + torch.randn(4, 3, 32, 32))
        moved = {key for key, value in one.network.named_buffers() if not torch.equal(value, before[key])}
        norms = {name for name, module in one.network.named_modules() if isinstance(module, nn.BatchNorm2d)}
        assert {key.rpartition(".")[0] for key in moved} == norms - {"bn1"}
        assert one.training
        assert not one.network.bn1.training


def test_half_a_layer_frozen_is_a_layer_that_learns() -> None:
    backbone = network()
    freeze(backbone, ["bn1.weight"])
    assert backbone.train().network.bn1.training


def test_a_network_at_rest_stays_to_the_bit_and_wakes() -> None:
    backbone = network().train()
    freeze(backbone, ["conv1", "bn1"])
    images = torch.randn(4, 3, 32, 32)
    expected = backbone.eval()(images)
    backbone.train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.rest(True)
    found = backbone(images)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    backbone.rest(False)
    assert backbone(images).requires_grad
    assert backbone.network.layer1.training
    assert not backbone.network.bn1.training
    backbone.eval()
    backbone.rest(True)
    backbone.rest(False)
    assert not backbone.network.layer1.training  # an evaluation is not ended by it


def test_a_momentum_encoder_is_frozen_where_its_network_is() -> None:
    backbone = network()
    freeze(backbone, ["conv1", "bn1"])
    teacher = MomentumEncoder(backbone)
    start = copy.deepcopy(teacher.module.network.conv1.weight)
    teacher.train()
    assert not teacher.module.network.bn1.training
    assert teacher.module.network.layer1[0].bn1.training
    with torch.no_grad():
        backbone.network.layer1[0].conv1.weight.add_(1)
    teacher.update(backbone, 0.3)
    assert torch.equal(teacher.module.network.conv1.weight, start)
    assert not torch.equal(teacher.module.network.layer1[0].conv1.weight, network().network.layer1[0].conv1.weight)


def test_what_cannot_be_frozen_is_refused() -> None:
    with pytest.raises(UserError, match=r"nothing in the network is named 'layr1'; it has conv1, .*layer4.*layer1"):
        freeze(network(), ["conv1", "layr1"])
    with pytest.raises(UserError, match="nothing of the backbone to learn"):
        freeze(network(), ["*"])
