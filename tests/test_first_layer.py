"""TrAct against loops over patches, its closed forms, and within a training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from selfsup.data import TrainLoader, load_splits
from selfsup.errors import UserError
from selfsup.first_layer import TrAct
from selfsup.methods import SimCLR
from selfsup.nn import BackboneConfig, build_backbone
from selfsup.optimization import OptimizerConfig
from selfsup.random import fold_in

QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


def rows_of(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """Return the patches of a convolution, cell by cell: ``[b,n]``."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    height = (images.shape[2] + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    width = (images.shape[3] + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    rows = []
    for image in images:
        for y in range(height):
            for x in range(width):
                row = torch.zeros(image.shape[0], kh, kw, dtype=image.dtype)
                for i in range(kh):
                    for j in range(kw):
                        down, across = y * sh - ph + i * dh, x * sw - pw + j * dw
                        if 0 <= down < image.shape[1] and 0 <= across < image.shape[2]:
                            row[:, i, j] = image[:, down, across]
                rows.append(row.flatten())
    return torch.stack(rows)


def expected(weight: Tensor, rows: Tensor, damping: float) -> Tensor:
    """Return the gradient of a weight times the inverse, which is taken by eigenvalues."""
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    assert weight.grad is not None
    inverse = vectors @ torch.diag(1 / (values + damping)) @ vectors.T
    return (weight.grad.flatten(1) @ inverse).view_as(weight)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (2, 3), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
        {"kernel_size": 4, "stride": 4},
    ],
)
@pytest.mark.parametrize("damping", [0.1, 2.0])
def test_the_gradient_of_a_convolution_is_that_of_loops(settings: dict[str, Any], damping: float) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 5, **settings), nn.ReLU(), nn.Conv2d(5, 3, 2)).double()
    images = torch.randn(4, 2, 8, 8, dtype=torch.float64) + 0.5
    tract = TrAct(network, damping)
    network(images).square().mean().backward()
    first, second = network[0], network[2]
    wanted = expected(first.weight, rows_of(first, images), damping)
    others = [first.bias.grad.clone(), second.weight.grad.clone()]
    assert not torch.allclose(first.weight.grad, wanted)
    tract.precondition()
    torch.testing.assert_close(first.weight.grad, wanted, rtol=1e-10, atol=0)
    torch.testing.assert_close([first.bias.grad, second.weight.grad], others, rtol=0, atol=0)


def test_without_damping_each_output_of_fewer_rows_than_inputs_moves_by_its_own_gradient() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(9, 4, bias=False).double()
    inputs = torch.randn(5, 9, dtype=torch.float64)  # 5 independent rows
    tract = TrAct(layer, 1e-12)
    outputs = layer(inputs)
    outputs.retain_grad()
    outputs.square().sum().backward()
    tract.precondition()
    # a ((aᵀa / b + λ)⁻¹ aᵀ G) = b G for λ -> 0
    torch.testing.assert_close(inputs @ layer.weight.grad.T, 5 * outputs.grad, rtol=1e-6, atol=1e-6)


def test_a_large_damping_only_scales_the_gradient() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 2).double()
    tract = TrAct(layer, 1e9)
    layer(torch.randn(7, 6, dtype=torch.float64)).exp().sum().backward()
    plain = layer.weight.grad.clone()
    tract.precondition()
    torch.testing.assert_close(layer.weight.grad * 1e9, plain, rtol=1e-6, atol=0)


def test_all_calls_of_a_step_are_taken_together_and_those_without_gradient_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("selfsup.first_layer.VALUES_AT_A_TIME", 1)  # image by image
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    views = torch.randn(2, 6, 3, 5, 5)
    tract = TrAct(layer, 0.1)
    for _ in range(2):  # the second step knows nothing of the first
        layer.zero_grad()
        for view in views:
            layer(view).square().sum().backward()
        with torch.no_grad():
            layer(10 * views[0])
        layer.eval()
        layer(10 * views[1])
        layer.train()
        wanted = expected(layer.weight, rows_of(layer, views.flatten(0, 1)), 0.1)
        tract.precondition()
        torch.testing.assert_close(layer.weight.grad, wanted, rtol=1e-4, atol=1e-5)
    copy.deepcopy(layer)(views[0])
    assert tract._moments is None, "copies are not looked at"
    tract.remove()
    layer(views[0])
    before = layer.weight.grad.clone()
    tract.precondition()
    assert torch.equal(layer.weight.grad, before)


def stepped(config: Any, tract: float | None, **changes: Any) -> tuple[SimCLR, Tensor, Tensor]:
    """Take one step of plain SGD with rate 1, and return the method, and the first weight before and after."""
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1]), 3)
    backbone.save_memory(changes.pop("chunk_size", None), changes.pop("checkpointing", False))
    optimizer = OptimizerConfig(
        lr=1.0, scaling="none", momentum=0.0, weight_decay=0.0, schedule="constant", tract=tract
    )
    method = SimCLR(backbone, image_size=16, batch_size=16, optimizer=optimizer)
    before = backbone.network.conv1.weight.detach().clone()
    loader = TrainLoader(load_splits(config.data).pretrain, 16, 0)
    pl.Trainer(max_steps=1, accelerator="cpu", devices=1, **changes, **QUIET).fit(method, loader)
    return method, before, backbone.network.conv1.weight.detach()


@pytest.mark.parametrize("changes", [{}, {"chunk_size": 6}, {"checkpointing": True}])
def test_a_training_moves_the_first_weight_so(changes: dict[str, Any], tiny_config: Callable[..., Any]) -> None:
    config = tiny_config()
    _, before, plain = stepped(config, None, **changes)
    method, _, moved = stepped(config, 0.1, **changes)
    batch = next(iter(TrainLoader(load_splits(config.data).pretrain, 16, 0)))
    images = torch.cat([view.image for view in method.views(batch.image, fold_in(method.seed, 0), batch.index)])
    layer = method.backbone.network.conv1
    layer.weight.grad = before - plain
    wanted = before - expected(layer.weight, rows_of(layer, images), 0.1)
    torch.testing.assert_close(moved, wanted, rtol=1e-3, atol=1e-4)
    assert (wanted - plain).abs().max() > 0.1
    assert not layer._forward_pre_hooks, "the network is looked at no longer than it trains"


def test_gradients_are_clipped_afterwards(tiny_config: Callable[..., Any]) -> None:
    method, _, _ = stepped(tiny_config(), 0.1, gradient_clip_val=1e-3)
    norms = [parameter.grad.norm().item() for parameter in method.parameters() if parameter.grad is not None]
    assert math.hypot(*norms) == pytest.approx(1e-3, rel=1e-2)


class Padded(nn.Conv2d):
    """A convolution that does something else with its weight."""


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.ReLU(), "the network has no convolution and no linear layer; leave it out"),
        (Padded(3, 4, 3), r"the first layer, Padded\(3, 4, .*\), is frozen, or no plain convolution"),
        (nn.Conv2d(3, 4, 3, padding="same"), "no plain convolution"),
        (nn.Conv2d(3, 4, 3, padding_mode="reflect"), "no plain convolution"),
        (nn.Conv2d(4, 4, 3, groups=2), "no plain convolution"),
        (nn.Linear(3, 4).requires_grad_(False), "is frozen"),
    ],
)
def test_other_first_layers_are_refused(network: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=rf"optimizer\.tract: .*{message}"):
        TrAct(network, 0.1)
