"""Stochastic depth of subsets: counts and scales, its expectation, evaluation, and networks without such blocks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.nn import Backbone, BackboneConfig, MomentumEncoder, SubsetBlock, build_backbone, drop_images

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2, "init_values": 0.5}


def build(**kwargs: Any) -> Backbone:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig("vit_tiny_patch16_224", kwargs={**VIT, **kwargs}), 3, image_sizes=[16])
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.3)
    return backbone.double()


def dropped(rate: float) -> Backbone:
    backbone = build()
    drop_images(backbone, rate)
    return backbone.train()


def tokens(count: int = 5) -> Tensor:
    return torch.randn(count, 4, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_at_rate_zero_and_in_evaluation_it_is_the_network() -> None:
    plain, images = build().train(), torch.randn(5, 3, 16, 16, dtype=torch.float64)
    expected = plain(images)
    torch.testing.assert_close(dropped(0.0)(images), expected)
    other = dropped(0.7)
    assert not torch.allclose(other(images), expected, atol=1e-3)
    assert torch.equal(other.eval()(images), expected)
    assert other.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(
    ("rate", "images", "kept"), [(0.4, 5, 3), (0.4, 6, 3), (0.5, 5, 2), (0.9, 5, 1), (0.3, 1, 1), (0.25, 8, 6)]
)
def test_each_half_runs_on_its_own_images_and_is_scaled(rate: float, images: int, kept: int) -> None:
    """max(⌊B(1 − rate)⌋, 1) images; by hand with the very images that were drawn."""
    block, x = dropped(rate).network.blocks[0], tokens(images)
    assert isinstance(block, SubsetBlock)
    seen: dict[str, Tensor] = {}
    block.norm1.register_forward_hook(lambda _module, inputs, _out: seen.update(attention=inputs[0]))
    block.norm2.register_forward_hook(lambda _module, inputs, _out: seen.update(perceptron=inputs[0]))
    out = block(x)
    assert len(seen["attention"]) == len(seen["perceptron"]) == kept
    half, scale = x.clone(), images / kept
    for row in seen["attention"]:
        (n,) = [n for n in range(images) if torch.equal(x[n], row)]
        half[n] = x[n] + scale * block.ls1(block.attn(block.norm1(x[n : n + 1])))[0]
    expected = half.clone()
    for row in seen["perceptron"]:
        n = int((half - row).abs().sum((1, 2)).argmin())
        expected[n] = half[n] + scale * block.ls2(block.mlp(block.norm2(half[n : n + 1])))[0]
    torch.testing.assert_close(out, expected)


def test_the_mean_over_many_draws_is_the_block() -> None:
    """Of one half; the second is a curve of the first."""
    block, x = dropped(0.5).network.blocks[0], tokens(4)
    nn.init.zeros_(block.ls2.gamma)
    torch.manual_seed(0)
    mean = sum(block(x) for _ in range(2000)) / 2000
    expected = x + block.ls1(block.attn(block.norm1(x)))
    spread = (expected - x).abs().max()
    assert (mean - expected).abs().max() < 0.1 * spread


def test_gradients_reach_images_and_weights() -> None:
    block, x = dropped(0.4).network.blocks[0], tokens().requires_grad_()
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(lambda t: _again(block, t), (x,))
    block(x).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


def _again(block: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(3)
    out: Tensor = block(x)
    return out


def test_autocast_and_recomputation() -> None:
    backbone, images = dropped(0.4).float(), torch.randn(5, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert backbone(images).isfinite().all()
    torch.manual_seed(0)
    backbone(images).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in backbone.parameters()]
    backbone.zero_grad()
    backbone.save_memory(activation_checkpointing=True)
    torch.manual_seed(0)
    backbone(images).square().sum().backward()
    for parameter, gradient in zip(backbone.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_copies_keep_it_and_a_teacher_in_evaluation_runs_whole() -> None:
    backbone, images = dropped(0.5), torch.randn(5, 3, 16, 16, dtype=torch.float64)
    teacher = MomentumEncoder(backbone, evaluates=True).train()
    assert torch.equal(teacher(images), build().eval()(images))
    assert copy.deepcopy(backbone).network.blocks[1].subset_rate == 0.5


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("resnet18", {}, "ResNet has no blocks of a plain vision transformer"),
        ("eva02_tiny_patch14_224", {"img_size": 28}, "Eva has no blocks of a plain vision transformer"),
        ("vit_tiny_patch16_224", {**VIT, "drop_path_rate": 0.1}, "two kinds of stochastic depth"),
    ],
)
def test_what_does_not_fit_is_named(name: str, kwargs: dict[str, Any], message: str) -> None:
    backbone = build_backbone(BackboneConfig(name, kwargs=kwargs), 3)
    with pytest.raises(UserError, match=message):
        drop_images(backbone, 0.3)
