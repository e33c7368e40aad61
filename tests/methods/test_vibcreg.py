"""VIbCReg: a step by hand, its head and its weights."""

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
from selfsup.functional import vibcreg_loss

TINY = ["method.hidden_dim=16", "method.output_dim=8"]
RANKS = [["method.output_dim=7"], []]  # the ranks sum their products; they gather embeddings


def drawn(method: Any, batch: Any) -> Any:
    return method.views(batch.image, seed=twin_seed(method), index=batch.index)


def test_a_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    """Networks a view at a time; torch's own correlation."""
    method, batch = prepared(tiny_config("vibcreg"))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    z1, z2 = (twin.head(twin.backbone(view.image)) for view in drawn(twin, batch))
    torch.testing.assert_close(loss, vibcreg_loss(z1, z2))
    expected = 25 * (z1 - z2).square().mean()
    for z in (z1, z2):
        expected = expected + 25 * (1 - (z.var(0) + 1e-4).sqrt()).clamp_min(0).mean() / 2
        expected = expected + 200 * (torch.corrcoef(z.T) - torch.eye(8)).square().sum() / 64
    torch.testing.assert_close(loss, expected)


def test_the_default_head_and_weights_are_solo_learn_s(tiny_method: Callable[..., Any]) -> None:
    head = tiny_method("vibcreg").head
    assert [type(m) for m in head] == [nn.Linear, nn.BatchNorm1d, nn.GELU] * 2 + [nn.Linear]
    assert head[-1].bias is None
    config = load_config(["method=vibcreg"]).method
    assert (config.invariance_weight, config.variance_weight, config.covariance_weight) == (25, 25, 200)
    assert (config.hidden_dim, config.output_dim) == (2048, 2048)


def test_a_negative_weight_is_refused(tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="must be at least 0"):
        tiny_method("vibcreg", "method.covariance_weight=-1")
