"""FroSSL: a step by hand, its head, and many views."""

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
from selfsup.functional import frossl_loss

TINY = ["method.hidden_dim=16", "method.output_dim=8"]
RANKS = [[], ["augment.counts=[3]", "method.invariance_weight=2"], ["method.output_dim=24"]]


def drawn(method: Any, batch: Any) -> Any:
    return method.views(batch.image, seed=twin_seed(method), index=batch.index)


@pytest.mark.parametrize("views", [2, 3])
def test_a_step_by_hand(views: int, tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("frossl", f"augment.counts=[{views}]", "method.invariance_weight=1.4"))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    images = torch.cat([view.image for view in drawn(twin, batch)])
    z = twin.head(twin.backbone(images)).unflatten(0, (views, -1))
    torch.testing.assert_close(loss, frossl_loss(z, 1.4))


def test_the_head_has_no_last_bias_and_the_defaults_are_the_authors(tiny_method: Callable[..., Any]) -> None:
    linear = [m for m in tiny_method("frossl").head if isinstance(m, nn.Linear)]
    assert [m.bias is None for m in linear] == [False, False, True]
    config = load_config(["method=frossl"])
    assert (config.method.hidden_dim, config.method.output_dim, config.method.invariance_weight) == (2048, 1024, 1.0)
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.weight_decay) == ("lars", 0.3, 1e-4)


def test_one_view_is_refused(tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="at least 2"):
        tiny_method("frossl", "augment.counts=[1]")
