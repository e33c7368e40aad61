"""MMCR: a step by hand with and without the momentum encoder, and views of several sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed

from selfsup.config import load_config
from selfsup.errors import UserError
from selfsup.functional import mmcr_loss

TINY = ["method.hidden_dim=16", "method.output_dim=8"]
RANKS = [["augment.counts=[3]"], ["method.momentum_encoder=false", "method.local_weight=0.2"], ["method.output_dim=24"]]


def drawn(method: Any, batch: Any) -> Any:
    return method.views(batch.image, seed=twin_seed(method), index=batch.index)


def test_a_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    """In the first step the momentum encoder has the same weights; then it follows the moved ones."""
    method, batch = prepared(tiny_config("mmcr", "method.momentum=0.75", "augment.counts=[3]"))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    views = drawn(twin, batch)
    z = twin.head(twin.backbone(torch.cat([view.image for view in views]))).unflatten(0, (3, -1))
    torch.testing.assert_close(loss, mmcr_loss(z, momentum_views=z.detach()))
    units = torch.nn.functional.normalize(z, dim=-1)
    torch.testing.assert_close(loss, -torch.linalg.matrix_norm(units.mean(0), ord="nuc"))

    before = [p.clone() for p in method.target.parameters()]
    loss.backward()
    torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.5).step()
    method.after_optimizer_step()
    online = [*method.backbone.parameters(), *method.head.parameters()]
    for slow, old, quick in zip(method.target.parameters(), before, online, strict=True):
        torch.testing.assert_close(slow, 0.75 * old + 0.25 * quick)


def test_without_a_momentum_encoder_there_is_one_network(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("mmcr", "method.momentum_encoder=false", "method.local_weight=0.5"))
    twin = copy.deepcopy(method)
    assert not list(method.target.parameters())
    loss = method.training_step(batch, 0)
    images = torch.cat([view.image for view in drawn(twin, batch)])
    torch.testing.assert_close(loss, mmcr_loss(twin.head(twin.backbone(images)).unflatten(0, (2, -1)), 0.5))
    method.after_optimizer_step()


def test_the_default_head_and_optimiser_are_the_authors() -> None:
    config = load_config(["method=mmcr"])
    assert (config.method.hidden_dim, config.method.output_dim, config.method.momentum) == (8192, 512, 0.99)
    assert (config.optimizer.name, config.optimizer.weight_decay) == ("lars", 1e-6)


def test_views_of_two_sizes_are_refused(tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="one entry"):
        tiny_method("mmcr", "augment=swav", "augment.counts=[2,2]")
