"""Swin transformers: timm's own tokens where nothing is exchanged, and what a mask must keep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.nn import Backbone, BackboneConfig, MaskToken, build_backbone, check_tokens, token_grid, token_stride

SIZE = 32
KWARGS = {"patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4}
NETWORKS = ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"]


def build(name: str) -> Backbone:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(name, kwargs=dict(KWARGS)), 3, image_sizes=[SIZE])
    for parameter in backbone.parameters():  # scales of layers that begin near zero, and biases, count
        nn.init.normal_(parameter, std=0.3)
    return backbone.double().eval()


def images() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_mask_tokens_are_timms_to_the_bit(name: str) -> None:
    backbone, x = build(name), images()
    expected = backbone.network.forward_features(x)  # [N,rows,columns,D]
    tokens = backbone.forward_tokens(x)
    assert torch.equal(tokens.patches, expected.flatten(1, 2))
    assert tokens.prefix.shape == (2, 0, 16)
    empty = torch.zeros(2, 256, dtype=torch.bool)
    assert torch.equal(backbone.forward_tokens(x, empty, MaskToken(8)()).patches, tokens.patches)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_mask_is_of_the_patches_behind_the_stem(name: str) -> None:
    """By hand: the stem's map with the token laid in, row by row, then the stages and the norm."""
    backbone, x, token = build(name), images(), MaskToken(8).double()()
    mask = torch.rand(2, 256, generator=torch.Generator().manual_seed(2)) < 0.4
    stem = backbone.network.patch_embed(x).clone()
    for n in range(2):
        for place in range(256):
            if mask[n, place]:
                stem[n, place // 16, place % 16] = token[0, 0]
    expected = backbone.network.norm(backbone.network.layers(stem)).flatten(1, 2)
    found = backbone.forward_tokens(x, mask, token).patches
    torch.testing.assert_close(found, expected)
    pixels = mask.view(2, 1, 16, 16).repeat_interleave(2, 2).repeat_interleave(2, 3)
    other = torch.where(pixels, torch.randn_like(x), x)
    assert torch.equal(backbone.forward_tokens(other, mask, token).patches, found)


def test_chunks_and_recomputation_change_nothing() -> None:
    backbone, x, token = build(NETWORKS[0]).train(), images(), MaskToken(8).double()()
    for module in backbone.modules():
        if type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    mask = torch.rand(2, 256, generator=torch.Generator().manual_seed(2)) < 0.4
    whole = backbone.forward_tokens(x, mask, token).patches
    backbone.save_memory(chunk_size=1, activation_checkpointing=True)
    torch.testing.assert_close(backbone.forward_tokens(x, mask, token).patches, whole)


def test_grid_and_stride_are_of_the_stem_and_of_the_last_stage() -> None:
    network = build(NETWORKS[0]).network
    assert token_grid(network, SIZE, windowed=True) == (16, 16)
    assert token_stride(network) == 4
    plain = build_backbone(BackboneConfig("vit_tiny_patch16_224", kwargs={"img_size": 32, "patch_size": 8}), 3)
    assert token_stride(plain.network) == 8


def test_patches_cannot_be_left_out_and_other_methods_refuse_it() -> None:
    backbone = build(NETWORKS[0])
    for arguments in ({"keep": torch.zeros(2, 3, dtype=torch.long)}, {"layers": (-1,)}):
        with pytest.raises(UserError, match="plain vision transformer, and SwinTransformer is none"):
            backbone.forward_tokens(images(), **arguments)
    with pytest.raises(UserError, match="plain vision transformer, and SwinTransformer is none"):
        check_tokens(backbone.network)


def test_a_hierarchical_network_that_is_no_swin_is_refused_by_name() -> None:
    network = build_backbone(BackboneConfig("resnet18"), 3).network
    with pytest.raises(UserError, match="a plain vision transformer or a Swin transformer, and ResNet is none"):
        check_tokens(network, windowed=True)
