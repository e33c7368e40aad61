"""Barlow Twins: a step by hand, its head, its two learning rates, and batches that are not full."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import nn

from selfsup.config import load_config
from selfsup.data import load_splits
from selfsup.engine.training import build_method
from selfsup.errors import UserError
from selfsup.functional import barlow_twins_loss
from selfsup.methods import Method
from selfsup.optimization import build_optimizer, scaled_lr
from selfsup.types import Batch

ZERO_LAST = True
TINY = ["method.hidden_dim=16", "method.output_dim=8"]
# 8 dimensions of 16 images: the ranks sum their products; 16: they gather embeddings
RANKS = [[], ["method.output_dim=16"]]


def embeddings(method: Method, batch: Batch) -> list[torch.Tensor]:
    views = method.views(batch.image, seed=twin_seed(method), index=batch.index)
    return [method.head(method.backbone(view.image)) for view in views]


def test_a_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    """Networks a view at a time; PyTorch's own BatchNorm standardises, and the batch there is divides."""
    method, batch = prepared(tiny_config("barlow_twins", "method.redundancy_weight=0.1"))
    batch = Batch(batch.image[:6], None, batch.index[:6])  # batch_size is 16
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)

    norm = nn.BatchNorm1d(8, affine=False)
    z1, z2 = (norm(z) for z in embeddings(twin, batch))
    correlation = z1.T @ z2 / 6
    identity = torch.eye(8)
    expected = ((correlation - identity) ** 2 * (identity + 0.1 * (1 - identity))).sum()
    torch.testing.assert_close(loss, expected)
    norms = [m for m in method.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert {int(n.num_batches_tracked) for n in norms} == {2}


def test_both_views_receive_a_gradient(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("barlow_twins"))
    z1, z2 = (z.detach().requires_grad_() for z in embeddings(method, batch))
    barlow_twins_loss(z1, z2).backward()
    assert bool(z1.grad.abs().sum() > 0.1)
    assert bool(z2.grad.abs().sum() > 0.1)


def test_the_default_head_is_three_layers_of_8192_without_biases() -> None:
    config = load_config(["method=barlow_twins", "data.train_size=400", "backbone=resnet_tiny"])
    splits = load_splits(config.data)
    with torch.device("meta"):
        head = build_method(config, splits).head
    linear = [m for m in head if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linear] == [8192, 8192, 8192]
    assert all(m.bias is None for m in linear)
    assert [type(m) for m in head[-3:]] == [nn.BatchNorm1d, nn.ReLU, nn.Linear]


def test_biases_and_scales_move_by_their_own_rate_and_lars_does_not_adapt_them(tiny_config: Callable[..., Any]) -> None:
    config = load_config(["method=barlow_twins", "batch_size=2048"]).optimizer
    assert (config.name, config.lr, config.weight_decay, config.warmup_epochs) == ("lars", 0.2, 1e-6, 10)
    method, batch = prepared(tiny_config("barlow_twins"))
    groups = method.param_groups()
    assert sum(len(g["params"]) for g in groups) == len([p for p in method.parameters() if p.requires_grad])
    optimizer = build_optimizer(groups, method.optimizer_config, scaled_lr(config, 2048))
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.2 * 8, 0.0003 * 8])

    method.training_step(batch, 0).backward()
    before = {name: (p.detach().clone(), p.grad.clone()) for name, p in method.named_parameters()}
    optimizer.step()
    for name, p in method.named_parameters():
        old, gradient = before[name]
        if p.ndim <= 1:
            torch.testing.assert_close(p, old - 0.0003 * 8 * gradient, msg=name)
        else:  # the length of an adapted step is a thousandth of the weight's, whatever the gradient's
            ratio = float((p.detach() - old).norm() / old.norm())
            assert ratio == pytest.approx(0.2 * 8 * 0.001, rel=1e-2), name


def test_the_preset_moves_as_the_authors_16_gpus_do(tiny_config: Callable[..., Any]) -> None:
    """Theirs: gradients divided by 16, decay 1e-6, 0.2 for weights and 0.0048 for biases, LARS of weights alone."""
    preset = load_config(["experiment=imagenet/barlow_twins", "data.root=."]).optimizer
    method, batch = prepared(tiny_config("barlow_twins"))
    method.double().optimizer_config = preset
    optimizer = build_optimizer(method.param_groups(), preset, scaled_lr(preset, 2048))
    method.training_step(batch, 0).backward()
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    optimizer.step()
    for name, p in method.named_parameters():
        old, theirs = before[name], p.grad / 16
        if p.ndim > 1:
            theirs = theirs + 1e-6 * old
            theirs = theirs * 0.001 * old.norm() / theirs.norm()
        rate = (0.2 if p.ndim > 1 else 0.0048) * 2048 / 256
        torch.testing.assert_close(p.detach(), old - rate * theirs, rtol=1e-12, atol=1e-14, msg=name)


def test_decay_can_reach_biases_too(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("barlow_twins", "optimizer.exclude_1d=false"))
    assert {group["weight_decay"] for group in method.param_groups()} == {1e-6}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("method.head_layers=0", "method.head_layers is 0; it must be at least 1"),
        ("method.redundancy_weight=-1", "must be at least 0"),
        ("method.bias_lr_scale=-1", "must be at least 0"),
        ("augment.counts=[3]", "takes 2"),
    ],
)
def test_settings_that_cannot_be(setting: str, message: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message):
        tiny_method("barlow_twins", setting)


def test_views_are_byol_s() -> None:
    config = load_config(["method=barlow_twins"])
    assert dataclasses.asdict(config.augment)["recipe"] == "byol"
