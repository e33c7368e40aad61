"""EMP-SSL: a step by hand, its patches, its head and its optimiser."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import nn

from selfsup.config import load_config
from selfsup.errors import UserError
from selfsup.functional import emp_ssl_loss

# at 200 the similarity, which regards each image alone, hides that the coding rate couples them
TINY = ["method.hidden_dim=16", "method.output_dim=8", "augment.counts=[4]", "method.similarity_weight=20"]
RANKS = [[], ["method.output_dim=24"]]


def drawn(method: Any, batch: Any) -> Any:
    return method.views(batch.image, seed=twin_seed(method), index=batch.index)


def test_a_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("emp_ssl"))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    views = drawn(twin, batch)
    assert len(views) == 4
    z = twin.head(twin.backbone(torch.cat([view.image for view in views]))).unflatten(0, (4, -1))
    torch.testing.assert_close(loss, emp_ssl_loss(z, 20.0, 0.2))


def test_patches_show_a_quarter_of_the_image(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("emp_ssl"))
    for view in drawn(method, batch):
        width, height = view.to_source[:, 0, 0].abs(), view.to_source[:, 1, 1].abs()
        torch.testing.assert_close(width, torch.full_like(width, 0.5))
        torch.testing.assert_close(height, torch.full_like(height, 0.5))


def test_the_default_head_patches_and_optimiser_are_the_authors(tiny_method: Callable[..., Any]) -> None:
    config = load_config(["method=emp_ssl"])
    assert config.augment.counts == [20]
    assert (config.method.hidden_dim, config.method.output_dim) == (4096, 1024)
    assert (config.method.similarity_weight, config.method.eps) == (200.0, 0.2)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.scaling, optimizer.weight_decay) == ("lars", 0.3, "none", 1e-4)
    head = tiny_method("emp_ssl").head
    assert [type(m) for m in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]


def test_an_eps_of_zero_is_refused(tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="eps is 0"):
        tiny_method("emp_ssl", "method.eps=0")
