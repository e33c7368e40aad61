"""MoCo v3 by hand: the step, its closed form, the gradients, the heads, the schedule, the frozen patch embedding."""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import nn

from selfsup.checkpoint import read_checkpoint
from selfsup.engine.training import train
from selfsup.errors import UserError
from selfsup.functional import cross_view_nce

ZERO_LAST = True
TINY = ["method.hidden_dim=16", "method.output_dim=8"]
RANKS = [[], ["method.head=vit", "method.temperature=0.2"]]

VIT = [
    "backbone.name=vit_tiny_patch16_224",
    "backbone.kwargs={img_size: 32, patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2}",
]


def layers(head: nn.Module) -> list[str]:
    return [type(module).__name__ for module in head.children()]


def test_step_is_both_directions_against_the_momentum_keys_of_the_other_view(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("moco_v3", "method.temperature=0.3"))
    for parameter in method.key_encoder.parameters():  # unlike the online network, or a mix-up would not show
        parameter.mul_(1.2)
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    first, second = (v.image for v in twin.views(batch.image, seed=twin_seed(method), index=batch.index))
    q1, q2 = (twin.predictor(twin.projector(twin.backbone(image))) for image in (first, second))
    k1, k2 = (twin.key_encoder.module(image) for image in (first, second))
    expected = 2 * 0.3 * (cross_view_nce(q1, k2, 0.3) + cross_view_nce(q2, k1, 0.3))
    torch.testing.assert_close(loss, expected)


def test_closed_form_of_orthonormal_keys_that_queries_have_found(tiny_config: Callable[..., Any]) -> None:
    """Four orthonormal images at temperature 0.2 give 4τ ln(1 + 3 exp(-1/τ)) = 0.016010."""
    method, _ = prepared(tiny_config("moco_v3", "method.temperature=0.2"))
    method.backbone = method.projector = method.predictor = method.key_encoder = nn.Identity()
    view = types.SimpleNamespace(image=torch.eye(4, 6))
    loss = method.step((view, view), None).loss
    assert loss.item() == pytest.approx(4 * 0.2 * math.log1p(3 * math.exp(-5)), rel=1e-5)
    assert loss.item() == pytest.approx(0.016010, abs=5e-7)


def test_keys_carry_no_gradient_and_the_predictor_is_on_the_query_side_only(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("moco_v3"))
    seen: list[torch.Tensor] = []
    method.key_encoder.register_forward_hook(lambda module, args, out: seen.append(out))
    method.training_step(batch, 0).backward()
    assert len(seen) == 2
    assert not any(key.requires_grad for key in seen)
    assert all(parameter.grad is None for parameter in method.key_encoder.parameters())
    names = {name for name, _ in method.key_encoder.named_parameters()}
    online = {name for name, _ in nn.Sequential(method.backbone, method.projector).named_parameters()}
    assert {name.removeprefix("module.") for name in names} == online


@pytest.mark.parametrize(
    ("head", "projector", "predictor"),
    [
        (
            "resnet",
            ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"],
            ["Linear", "BatchNorm1d", "ReLU", "Linear"],
        ),
        (
            "vit",
            ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"],
            ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"],
        ),
    ],
)
def test_heads(head: str, projector: list[str], predictor: list[str], tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("moco_v3", f"method.head={head}"))
    assert layers(method.projector) == projector
    assert layers(method.predictor) == predictor
    linear = [m for part in (method.projector, method.predictor) for m in part if isinstance(m, nn.Linear)]
    assert all(m.bias is None for m in linear)
    assert not method.projector[-1].affine
    assert method.projector[1].affine


def test_a_view_has_batch_norm_statistics_of_its_own(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("moco_v3"))
    sizes: list[int] = []
    method.backbone.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    method.training_step(batch, 0)
    assert sizes == [len(batch.image)] * 2


def test_momentum_rises_along_a_cosine(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("moco_v3", "method.momentum=0.99"))
    for parameter in (*method.backbone.parameters(), *method.projector.parameters()):
        nn.init.ones_(parameter)
    method.total_steps = 8
    for step, momentum in [(0, 0.99), (4, 0.995), (8, 1.0)]:
        for parameter in method.key_encoder.parameters():
            nn.init.zeros_(parameter)
        method.trainer = types.SimpleNamespace(global_step=step)  # type: ignore[assignment]
        method.after_optimizer_step()
        for parameter in method.key_encoder.parameters():
            torch.testing.assert_close(parameter, torch.full_like(parameter, 1 - momentum), rtol=1e-5, atol=1e-8)


def test_a_vision_transformer_trains_around_its_frozen_patch_embedding(tiny_config: Callable[..., Any]) -> None:
    before, batch = prepared(tiny_config("moco_v3", *VIT))
    assert layers(before.predictor)[-1] == "BatchNorm1d"  # the head goes by the backbone
    frozen = dict(before.backbone.network.patch_embed.named_parameters())
    assert frozen
    before.training_step(batch, 0).backward()
    assert all(p.grad is None and not p.requires_grad for p in frozen.values())
    assert before.backbone.network.cls_token.grad is not None
    trainable = {id(p) for group in before.param_groups() for p in group["params"]}
    assert not trainable & {id(p) for p in frozen.values()}

    run = train(tiny_config("moco_v3", *VIT, "trainer.max_epochs=1", "optimizer=adamw", "optimizer.warmup_epochs=0"))
    state = read_checkpoint(run)["state_dict"]
    embedding = {key: value for key, value in state.items() if "patch_embed" in key}
    assert len(embedding) == 2 * len(frozen)  # the online network's and the momentum encoder's
    for key, value in embedding.items():
        assert torch.equal(value, frozen[key.split("patch_embed.")[1]])
    moved = state["backbone.network.blocks.0.attn.qkv.weight"]
    assert not torch.equal(moved, before.backbone.network.blocks[0].attn.qkv.weight)


def test_the_patch_embedding_can_be_trained(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("moco_v3", *VIT, "method.freeze_patch_embed=false"))
    method.training_step(batch, 0).backward()
    assert all(bool(p.grad.ne(0).any()) for p in method.backbone.network.patch_embed.parameters())


def test_an_unknown_head_is_named(tiny_config: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"method\.head.*'vit'"):
        prepared(tiny_config("moco_v3", "method.head=vitt"))
