"""TWIST: a step by hand, and the normalisation before the softmax."""

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
from selfsup.functional import twist_loss

TINY = ["method.hidden_dim=16", "method.classes=8"]
RANKS = [[], ["method.temperature=0.5", "method.evenness_weight=2"]]


def drawn(method: Any, batch: Any) -> Any:
    return method.views(batch.image, seed=twin_seed(method), index=batch.index)


def test_a_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    """One normalisation for both views, whose logits have mean 0 and deviation 1 over all of them."""
    method, batch = prepared(tiny_config("twist"))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    logits = twin.head(twin.backbone(torch.cat([view.image for view in drawn(twin, batch)])))
    torch.testing.assert_close(loss, twist_loss(*logits.chunk(2)))
    torch.testing.assert_close(logits.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.std(0, correction=0), torch.ones(8), atol=0.05, rtol=0)


def test_the_head_ends_in_a_normalisation_without_scale(tiny_method: Callable[..., Any]) -> None:
    *_, linear, norm = tiny_method("twist").head
    assert isinstance(linear, nn.Linear)
    assert linear.bias is None
    assert isinstance(norm, nn.BatchNorm1d)
    assert not norm.affine


def test_the_defaults_are_the_authors() -> None:
    config = load_config(["method=twist"])
    assert (config.method.hidden_dim, config.method.classes, config.method.evenness_weight) == (4096, 4096, 1.0)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay, optimizer.warmup_epochs) == ("lars", 0.5, 1.5e-6, 10)


def test_one_class_is_refused(tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="classes is 1"):
        tiny_method("twist", "method.classes=1")
