"""MAE by hand, and what implementations of it get wrong."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import Tensor

from selfsup.config import load_config
from selfsup.errors import UserError
from selfsup.functional import mask_of
from selfsup.types import Batch

TINY = [
    "backbone=vit_small_mean",
    "backbone.kwargs.patch_size=8",
    "backbone.kwargs.embed_dim=16",
    "backbone.kwargs.depth=2",
    "backbone.kwargs.num_heads=2",
    "method.decoder_width=12",
    "method.decoder_depth=1",
    "method.decoder_heads=3",
]


def by_hand(method: Any, image: Tensor, keep: list[int]) -> Tensor:
    """The loss of one image ``[C,32,32]``: token by token, pixel by pixel."""
    network, decoder = method.backbone.network, method.decoder
    patches = [image[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8] for r in range(4) for c in range(4)]
    kernel = network.patch_embed.proj
    positions = network.pos_embed[0]
    sequence = [network.cls_token[0, 0] + positions[0]]
    for place in keep:
        embedded = (kernel.weight * patches[place]).sum((1, 2, 3)) + kernel.bias
        sequence.append(embedded + positions[1 + place])
    tokens = network.norm(network.blocks(torch.stack(sequence)[None]))[0]
    inside = [decoder.embed(token) for token in tokens]
    at = dict(zip(keep, inside[1:], strict=True))
    full = [at.get(place, decoder.mask_token[0, 0]) + decoder.positions[place] for place in range(16)]
    x = torch.stack([inside[0], *full])[None]
    for block in decoder.blocks:
        x = block(x)
    painted = decoder.head(decoder.norm(x))[0, 1:]
    total = torch.zeros((), dtype=image.dtype)
    hidden = [place for place in range(16) if place not in keep]
    for place in hidden:
        pixels = [patches[place][c, y, x] for y in range(8) for x in range(8) for c in range(3)]
        values = torch.stack(pixels)
        mean = sum(pixels) / 192
        variance = sum((value - mean) ** 2 for value in pixels) / 191
        total = total + ((painted[place] - (values - mean) / torch.sqrt(variance + 1e-6)) ** 2).sum() / 192
    return total / len(hidden)


def test_one_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("mae", "batch_size=4"))
    method.double()
    keeps: list[Tensor] = []
    method.decoder.register_forward_hook(lambda module, args, out: keeps.append(args[1]))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    (view,) = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    images = view.image.double()
    expected = sum(by_hand(twin, image, keep.tolist()) for image, keep in zip(images, keeps[0], strict=True)) / 4
    torch.testing.assert_close(loss, expected)  # every image has as many masked patches
    loss.backward()
    expected.backward()  # type: ignore[union-attr]
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_what_is_hidden_reaches_the_loss_and_never_the_prediction(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("mae"))
    found: list[tuple[Tensor, Tensor]] = []
    method.decoder.register_forward_hook(lambda module, args, out: found.append((args[1], out)))
    views = method.draw_views(batch, 0)
    before = method.step(views, batch).loss
    mask = mask_of(found[0][0], 16)
    pixels = mask.view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    views[0].image.add_(pixels * torch.randn_like(views[0].image))
    after = method.step(views, batch).loss
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(before, after)


def test_the_encoder_runs_on_what_is_seen(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("mae"))
    shapes: list[tuple[int, ...]] = []
    for block in (*method.backbone.network.blocks, *method.decoder.blocks):
        block.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape)))
    method.training_step(batch, 0)
    assert shapes == [(16, 1 + 4, 16), (16, 1 + 4, 16), (16, 1 + 16, 12)]


def test_masks_are_of_the_image_and_the_epoch_not_of_the_batch(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("mae"))
    keeps: list[Tensor] = []
    method.decoder.register_forward_hook(lambda module, args, out: keeps.append(args[1]))
    method.training_step(batch, 0)
    order = torch.arange(15, -1, -1)
    method.training_step(Batch(batch.image[order], None, batch.index[order]), 3)
    assert torch.equal(keeps[0], keeps[1][order])
    assert len({tuple(row) for row in keeps[0].tolist()}) > 8
    method.trainer.fit_loop.epoch_progress.current.completed = 1
    method.training_step(batch, 0)
    assert not torch.equal(keeps[0], keeps[2])


@pytest.mark.parametrize("normalize", [True, False])
def test_a_prediction_of_zeros(normalize: bool, tiny_config: Callable[..., Any]) -> None:
    """Normalised patches of P numbers have the mean square (P − 1) / P; else it is that of the hidden pixels."""
    method, batch = prepared(tiny_config("mae", f"method.normalize_pixels={str(normalize).lower()}"))
    keeps: list[Tensor] = []
    method.decoder.register_forward_hook(lambda module, args, out: keeps.append(args[1]))
    with torch.no_grad():
        method.decoder.head.weight.zero_()
    views = method.draw_views(batch, 0)
    views[0].image.normal_()
    loss = method.step(views, batch).loss.item()
    if normalize:
        assert loss == pytest.approx(191 / 192, rel=1e-3)
    else:
        hidden = mask_of(keeps[0], 16).view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
        expected = views[0].image[hidden.expand(-1, 3, -1, -1)].square().mean().item()
        assert loss == pytest.approx(expected, rel=1e-5)


def test_a_batch_can_be_learnt_by_heart(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("mae", "batch_size=2", "method.decoder_width=48", "seed=1"))
    views = method.draw_views(batch, 0)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], 0.01)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = method.step(views, batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_the_evaluated_feature_is_the_mean_of_the_patch_tokens(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("mae"))
    images = method.draw_views(batch, 0)[0].image
    with torch.no_grad():
        feature = method.evaluated_backbone.eval()(images)
        torch.testing.assert_close(feature, method.backbone.forward_tokens(images).patches.mean(1))


def test_positions_are_fixed_where_the_backbone_says_so(tiny_config: Callable[..., Any]) -> None:
    for fixed in (True, False):
        method, batch = prepared(tiny_config("mae", f"backbone.fixed_positions={str(fixed).lower()}"))
        positions = method.backbone.network.pos_embed
        assert positions.requires_grad != fixed
        assert (positions[0, 1, 8].item() == 1.0) == fixed  # cos 0
        method.training_step(batch, 0).backward()
        assert (positions.grad is None) == fixed


def test_defaults_are_the_authors() -> None:
    config = load_config(["method=mae", "data.image_size=224"])
    method, optimizer = config.method, config.optimizer
    assert (method.mask_ratio, method.normalize_pixels) == (0.75, True)
    assert (method.decoder_width, method.decoder_depth, method.decoder_heads) == (512, 8, 16)
    assert (optimizer.name, optimizer.lr, optimizer.reference_batch, optimizer.weight_decay) == (
        "adamw",
        1.5e-4,
        256,
        0.05,
    )
    assert (optimizer.kwargs["betas"], optimizer.warmup_epochs, optimizer.final_lr) == ([0.9, 0.95], 40, 0)
    assert (config.augment.recipe, config.augment.counts) == ("mae", [1])
    assert config.backbone.name == "vit_small_patch16_224"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.mask_ratio=0.02"], r"method\.mask_ratio=0\.02 masks 0 of the 16 patches"),
        (["method.mask_ratio=0.99"], r"method\.mask_ratio=0\.99 masks 16 of the 16 patches"),
        (["method.mask_ratio=1"], r"method\.mask_ratio"),
        (["method.decoder_heads=5"], "width 12 cannot have 5 heads"),
        (["augment.counts=[2]"], r"augment\.counts asks for +2 view"),
        (["backbone.kwargs.fc_norm=true"], r"backbone\.kwargs\.fc_norm=false"),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message):
        tiny_method("mae", *overrides)


def test_other_networks_are_refused_and_a_class_token_is_warned_of(tiny_method: Callable[..., Any]) -> None:
    from selfsup.methods import MAE
    from selfsup.nn import BackboneConfig, build_backbone

    with pytest.raises(UserError, match="ResNet is none; take backbone=vit_small"):
        MAE(build_backbone(BackboneConfig("resnet10t"), 3), image_size=32)
    with pytest.warns(UserWarning, match="class token, which MAE does not teach; backbone=vit_small_mean"):
        tiny_method("mae", "backbone.kwargs.global_pool=token")


def test_a_constant_image_costs_nothing_when_it_is_painted_in_its_mean(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("mae"))
    with torch.no_grad():
        method.decoder.head.weight.zero_()
    views = method.draw_views(batch, 0)
    views[0].image.fill_(0.3)
    assert math.isclose(method.step(views, batch).loss.item(), 0, abs_tol=1e-6)
