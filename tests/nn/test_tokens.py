"""The tokens of transformers: timm's own where nothing is exchanged, and what the two seams must keep."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.nn import (
    Backbone,
    BackboneConfig,
    MaskToken,
    build_backbone,
    check_tokens,
    fix_positions,
    token_grid,
    unchanged_statistics,
)

SIZE, PATCH, DIM = 16, 4, 12
VIT = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": DIM, "depth": 3, "num_heads": 2}
ROPE = {**VIT, "embed_dim": 16}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("vit_tiny_patch16_224", {}),
    "one size": ("vit_tiny_patch16_224", {"dynamic_img_size": False}),
    "no class token": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.5}),
    "positions of the prefix": ("vit_tiny_patch16_224", {"reg_tokens": 3}),
    "pre-norm": ("vit_base_patch16_clip_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "rotary": ("eva02_tiny_patch14_224", {"embed_dim": 16, "use_fc_norm": False}),
    "rotary, depth by depth": ("vit_small_patch16_rope_mixed_224", {"embed_dim": 16}),
    "dinov3": ("vit_small_patch16_dinov3", {"embed_dim": 16}),
}
DYNAMIC = [name for name in NETWORKS if name != "one size"]


def build(name: str = "class token", **kwargs: Any) -> Backbone:
    return copy.deepcopy(built(name, *kwargs.items()))


@cache
def built(name: str, *kwargs: Any) -> Backbone:
    torch.manual_seed(0)
    timms, own = NETWORKS[name]
    backbone = build_backbone(BackboneConfig(timms, kwargs={**VIT, **own, **dict(kwargs)}), 3, image_sizes=[SIZE])
    for parameter in backbone.parameters():  # scales of layers that begin near zero, and biases, count
        nn.init.normal_(parameter, std=0.3)
    return backbone.double().eval()


def images(count: int = 2, height: int = SIZE, width: int = SIZE) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def without(x: Tensor, place: int, columns: int = SIZE // PATCH) -> Tensor:
    """The images with other pixels in one patch."""
    x = x.clone()
    top, left = place // columns * PATCH, place % columns * PATCH
    x[:, :, top : top + PATCH, left : left + PATCH] += 5
    return x


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_tokens_are_timms_to_the_bit(name: str, training: bool) -> None:
    backbone = build(name).train(training)
    network: Any = backbone.network
    tokens = backbone.forward_tokens(images())
    assert torch.equal(torch.cat([tokens.prefix, tokens.patches], dim=1), network.forward_features(images()))
    assert tokens.prefix.shape[1] == network.num_prefix_tokens
    assert tokens.patches.shape == (2, (SIZE // PATCH) ** 2, backbone.dim)
    assert tokens.layers == ()


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_rectangle_has_its_own_grid(name: str) -> None:
    backbone = build(name)
    network: Any = backbone.network
    x = images(2, 8, 24)
    tokens = backbone.forward_tokens(x)
    assert torch.equal(torch.cat([tokens.prefix, tokens.patches], dim=1), network.forward_features(x))
    assert token_grid(network, (8, 24)) == (2, 6)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_timms_to_the_bit(name: str, normalize: bool) -> None:
    backbone = build(name)
    network: Any = backbone.network
    tokens = backbone.forward_tokens(images(), layers=(-1, 0), normalize_layers=normalize)
    expected = network.forward_intermediates(images(), norm=normalize, output_fmt="NLC", intermediates_only=True)
    assert len(tokens.layers) == 2
    assert torch.equal(tokens.layers[0].patches, expected[2])
    assert torch.equal(tokens.layers[1].patches, expected[0])
    assert tokens.layers[0].prefix.shape == tokens.prefix.shape
    assert torch.equal(tokens.layers[0].patches, tokens.patches) == normalize


@pytest.mark.parametrize("name", NETWORKS)
def test_all_patches_in_another_order_are_the_whole_in_that_order(name: str) -> None:
    backbone = build(name)
    keep = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(seed)) for seed in range(2)])
    whole, ours = backbone.forward_tokens(images()), backbone.forward_tokens(images(), keep=keep)
    expected = torch.stack([patches[order] for patches, order in zip(whole.patches, keep, strict=True)])
    torch.testing.assert_close(ours.patches, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(ours.prefix, whole.prefix, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NETWORKS)
def test_leaving_out_is_attention_that_does_not_look_there(name: str) -> None:
    """timm's own attention mask hides the other patches; places and rotary positions stay as in the whole image."""
    backbone = build(name)
    network: Any = backbone.network
    keep = torch.tensor([[13, 2, 7], [0, 5, 15]])
    count = network.num_prefix_tokens
    hidden = torch.full((2, 1, 16 + count, 16 + count), -math.inf, dtype=torch.float64)
    hidden[..., :count] = 0
    for number, row in enumerate(keep.tolist()):
        for place in row:
            hidden[number, :, :, count + place] = 0
    expected = network.forward_features(images(), attn_mask=hidden)
    ours = backbone.forward_tokens(images(), keep=keep)
    for number, row in enumerate(keep.tolist()):
        for position, place in enumerate(row):
            torch.testing.assert_close(ours.patches[number, position], expected[number, count + place])
    torch.testing.assert_close(ours.prefix, expected[:, :count])


@pytest.mark.parametrize("name", NETWORKS)
def test_patches_that_are_left_out_have_no_influence(name: str) -> None:
    backbone = build(name)
    keep = torch.tensor([[3, 14, 6]] * 2)
    before = backbone.forward_tokens(images(), keep=keep)
    after = backbone.forward_tokens(without(images(), 5), keep=keep)
    assert torch.equal(before.patches, after.patches)
    assert torch.equal(before.prefix, after.prefix)
    assert not torch.equal(before.patches, backbone.forward_tokens(without(images(), 14), keep=keep).patches)


@pytest.mark.parametrize("name", NETWORKS)
def test_pixels_under_the_mask_have_no_influence_and_the_place_has(name: str) -> None:
    backbone = build(name)
    token = torch.randn(1, 1, backbone.dim, dtype=torch.float64)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    whole = backbone.forward_tokens(images())
    assert torch.equal(backbone.forward_tokens(images(), mask, token).patches, whole.patches)
    mask[0, 5] = mask[1, 9] = True
    before = backbone.forward_tokens(images(), mask, token)
    assert not torch.equal(before.patches, whole.patches)
    changed = torch.stack([without(images(), 5)[0], without(images(), 9)[1]])
    assert torch.equal(backbone.forward_tokens(changed, mask, token).patches, before.patches)
    everywhere = backbone.forward_tokens(images(), torch.ones_like(mask), token).patches
    torch.testing.assert_close(everywhere[0], everywhere[1])  # nothing of the images is left
    assert not torch.allclose(everywhere[0, 0], everywhere[0, 5])  # but a token knows where it is


@pytest.mark.parametrize("name", NETWORKS)
def test_a_mask_token_that_is_the_patch_changes_nothing(name: str) -> None:
    backbone = build(name)
    network: Any = backbone.network
    plain = torch.full((2, 3, SIZE, SIZE), 0.7, dtype=torch.float64)
    embedded = network.patch_embed(plain).reshape(2, 16, -1)
    mask = torch.arange(16).expand(2, 16) % 3 == 0
    ours = backbone.forward_tokens(plain, mask, embedded[:1, :1])
    torch.testing.assert_close(ours.patches, backbone.forward_tokens(plain).patches, rtol=1e-9, atol=1e-11)


def test_masked_and_left_out_at_once() -> None:
    backbone = build("rotary")
    token, keep = torch.randn(16, dtype=torch.float64), torch.tensor([[3, 14, 6]] * 2)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, [3, 9]] = True
    before = backbone.forward_tokens(images(), mask, token, keep)
    for place in (3, 9, 1):
        assert torch.equal(backbone.forward_tokens(without(images(), place), mask, token, keep).patches, before.patches)
    assert not torch.equal(backbone.forward_tokens(images(), keep=keep).patches, before.patches)


def gradients(backbone: Backbone, token: MaskToken, seams: dict[str, Any]) -> list[Tensor]:
    tokens = backbone.forward_tokens(images(5), mask_token=token(), **seams)
    parts = [tokens.prefix, tokens.patches, *(layer.patches for layer in tokens.layers)]
    loss = torch.stack([(part * torch.linspace(-1, 1, part.shape[-1])).square().sum() for part in parts]).sum()
    with unchanged_statistics(backbone):
        loss.backward()
    found = [parameter.grad for parameter in [*backbone.parameters(), *token.parameters()]]
    assert all(gradient is not None for gradient in found)
    return [loss.detach(), *found]  # type: ignore[list-item]


@pytest.mark.parametrize(("chunk", "again"), [(2, False), (1, True), (None, True)])
@pytest.mark.parametrize("name", ["class token", "rotary"])
def test_chunks_and_computing_again_change_nothing(name: str, chunk: int | None, again: bool) -> None:
    mask = torch.arange(5 * 16).reshape(5, 16) % 3 == 0
    keep = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(seed))[:9] for seed in range(5)])
    backbone = build(name).train()
    token = MaskToken(backbone.dim).double()
    twin, other = copy.deepcopy(backbone), copy.deepcopy(token)
    twin.save_memory(chunk, again)
    for seams in ({"mask": mask, "keep": keep, "layers": (0, -1)}, {"mask": mask}):
        for ours, plain in zip(gradients(twin, other, seams), gradients(backbone, token, seams), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


def test_compiled_as_a_whole_they_are_the_same() -> None:
    backbone = build("rotary")
    mask = torch.arange(2 * 16).reshape(2, 16) % 3 == 0
    keep, token = torch.tensor([[3, 14, 6]] * 2), torch.randn(1, 1, backbone.dim, dtype=torch.float64)
    compiled = torch.compile(backbone.forward_tokens, backend="eager", fullgraph=True)
    ours = compiled(images(), mask, token, keep, (-2,))
    expected = backbone.forward_tokens(images(), mask, token, keep, (-2,))
    torch.testing.assert_close(ours.patches, expected.patches)
    torch.testing.assert_close(ours.layers[0].prefix, expected.layers[0].prefix)


def test_half_precision_takes_the_mask_token_along() -> None:
    backbone = build().float()
    token = MaskToken(backbone.dim)
    mask = torch.ones(2, 16, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = backbone.forward_tokens(images().float(), mask, token())
    assert bool(tokens.patches.isfinite().all())


def test_fixed_positions_are_sines_and_cosines_of_row_and_column() -> None:
    for name in ("class token", "registers", "positions of the prefix"):
        network: Any = build(name, img_size=(8, 16)).network
        fix_positions(network)
        places = network.pos_embed[0]
        prefix = len(places) - 2 * 4
        assert not places[:prefix].any()
        assert not network.pos_embed.requires_grad
        for row in range(2):
            for column in range(4):
                angles = [[place / 10000 ** (i / 3) for i in range(3)] for place in (row, column)]
                expected = [f(a) for f in (math.sin, math.cos) for place in angles for a in place]
                found = places[prefix + 4 * row + column].tolist()
                assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("resnet10t", {}, "ResNet is none; take backbone=vit_small"),
        ("swin_tiny_patch4_window7_224", {}, "SwinTransformer is none"),
        ("vit_tiny_r_s16_p8_224", {}, "VisionTransformer"),  # a ResNet before the tokens
        ("vit_tiny_patch16_224", {**VIT, "class_token": False, "global_pool": "avg"}, r"kwargs\.fc_norm=false"),
        ("vit_tiny_patch16_224", {**VIT, "patch_drop_rate": 0.5}, r"backbone\.kwargs\.patch_drop_rate"),
        ("eva02_tiny_patch14_224", {**ROPE, "global_pool": "avg"}, r"kwargs\.use_fc_norm=false"),
        (
            "eva02_tiny_patch14_224",
            {**ROPE, "use_fc_norm": False, "patch_drop_rate": 0.5},
            r"backbone\.kwargs\.patch_drop_rate",
        ),
    ],
)
def test_other_networks_are_refused_by_name(name: str, kwargs: dict[str, Any], message: str) -> None:
    backbone = build_backbone(BackboneConfig(name, kwargs=kwargs), 3)
    with pytest.raises(UserError, match=message):
        check_tokens(backbone.network)
    with pytest.raises(UserError, match=message):
        backbone.forward_tokens(images().float(), layers=(-1,))


def test_wrong_masks_and_places_are_refused() -> None:
    backbone = build()
    token = torch.zeros(DIM, dtype=torch.float64)
    with pytest.raises(ValueError, match="needs a mask_token"):
        backbone.forward_tokens(images(), torch.zeros(2, 16, dtype=torch.bool))
    for mask in (torch.zeros(2, 15, dtype=torch.bool), torch.zeros(2, 16), torch.zeros(16, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"mask must be bool \[2, 16\]"):
            backbone.forward_tokens(images(), mask, token)
    for keep in (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"keep must be int64 \[2,K\]"):
            backbone.forward_tokens(images(), keep=keep)
    for layer in (3, -4):
        with pytest.raises(ValueError, match="between -3 and 2"):
            backbone.forward_tokens(images(), layers=(layer,))
    learned: Any = build("dinov3").network
    with pytest.raises(UserError, match=r"backbone\.fixed_positions: Eva has no positions"):
        fix_positions(learned)


def test_a_mask_token_begins_small() -> None:
    """Normal, with a deviation of 0.02."""
    torch.manual_seed(0)
    token = MaskToken(4000)()
    assert token.shape == (1, 1, 4000)
    assert token.std().item() == pytest.approx(0.02, rel=0.05)
    assert abs(token.mean().item()) < 0.002


@pytest.mark.parametrize("again", [False, True])
def test_blocks_are_computed_again_where_that_is_asked_for(again: bool) -> None:
    backbone, calls = build().train(), []
    backbone.save_memory(activation_checkpointing=again)
    for block in backbone.network.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    backbone.forward_tokens(images()).patches.sum().backward()
    assert len(calls) == (6 if again else 3)
