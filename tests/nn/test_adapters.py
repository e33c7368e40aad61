"""Low-rank adapters: what they compute, what learns, and that merging them changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfsup.errors import UserError
from selfsup.nn import AdaptedLinear, Backbone, BackboneConfig, adapt, build_backbone, merge

VIT = BackboneConfig("vit_tiny_patch16_224", kwargs={"depth": 2, "embed_dim": 12, "num_heads": 2, "patch_size": 4})


def vit() -> Backbone:
    torch.manual_seed(0)
    return build_backbone(VIT, 3, image_sizes=[16])


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_what_a_loop_says(bias: bool) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(4, 3, bias=bias).double()
    layer = AdaptedLinear(linear, 2, 5.0)
    nn.init.normal_(layer.adapter_b)
    x = torch.randn(2, 4, dtype=torch.float64)
    w, a, b = linear.weight.tolist(), layer.adapter_a.tolist(), layer.adapter_b.tolist()
    offset = linear.bias.tolist() if bias else [0.0] * 3
    for row, out in zip(x.tolist(), layer(x).tolist(), strict=True):
        thin = [sum(a[r][i] * row[i] for i in range(4)) for r in range(2)]
        for o in range(3):
            plain = sum(w[o][i] * row[i] for i in range(4)) + offset[o]
            expected = plain + 5.0 / 2 * sum(b[o][r] * thin[r] for r in range(2))
            assert out[o] == pytest.approx(expected, rel=1e-12)
    merged = layer.merged()
    assert type(merged) is nn.Linear
    torch.testing.assert_close(merged(x), layer(x), rtol=1e-12, atol=1e-12)


def test_a_layer_starts_as_lora_says_and_keeps_its_mode() -> None:
    """A is drawn as the weight of a linear layer, B is zero; α is the rank where it is not given."""
    torch.manual_seed(1)
    layer = AdaptedLinear(nn.Linear(400, 300), 50, 5.0)
    bound = 400**-0.5  # kaiming's with a = √5
    assert layer.adapter_a.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert layer.adapter_a.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not layer.adapter_b.any()
    assert not layer.eval().merged().training
    assert layer.train().merged().training
    for alpha, scale in ((None, 1.0), (6.0, 2.0)):
        backbone = vit()
        adapt(backbone, 3, alpha)
        found = {module.scale for module in backbone.modules() if isinstance(module, AdaptedLinear)}
        assert found == {scale}


def test_a_network_starts_as_it_was_learns_by_its_adapters_alone_and_merges_back() -> None:
    plain, backbone = vit(), vit()
    images = torch.randn(2, 3, 16, 16)
    before = {key: value.clone() for key, value in plain.network.state_dict().items()}
    assert adapt(backbone, 3) == 8  # qkv, proj, fc1 and fc2 of two blocks
    assert torch.equal(backbone(images), plain(images))
    learning = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert {name.rpartition(".")[2] for name in learning} == {"adapter_a", "adapter_b"}
    assert len(learning) == 16
    backbone(images).square().sum().backward()
    assert all((p.grad is not None) == (name in learning) for name, p in backbone.named_parameters())
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name in learning:
                parameter.add_(0.1 * torch.randn_like(parameter))
    expected = backbone(images).detach()
    assert not torch.allclose(expected, plain(images), atol=1e-3)
    merge(backbone)
    assert backbone.network.state_dict().keys() == before.keys()
    torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-5)
    changed = {key for key, value in backbone.network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {
        f"blocks.{n}.{layer}.weight" for n in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }


def test_an_adapted_network_runs_as_in_evaluation() -> None:
    torch.manual_seed(0)
    kwargs = {**VIT.kwargs, "drop_path_rate": 0.9, "proj_drop_rate": 0.5}
    backbone = build_backbone(BackboneConfig(VIT.name, kwargs=kwargs), 3, image_sizes=[16]).train()
    images = torch.randn(4, 3, 16, 16)
    assert not torch.equal(backbone(images), backbone(images))
    adapt(backbone, 2)
    assert torch.equal(backbone.train()(images), backbone(images))


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(UserError, match="adapter_rank=13 is more than a layer of 12 inputs and 36 outputs"):
        adapt(vit(), 13)
    resnet = build_backbone(BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1]), 3)
    with pytest.raises(UserError, match="no linear layers"):
        adapt(resnet, 2)
