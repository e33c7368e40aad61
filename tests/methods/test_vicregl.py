"""VICRegL: a step by hand, its heads, and views that cannot be."""

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
from selfsup.functional import vicreg_loss, vicregl_loss

ZERO_LAST = True
TINY = ["method.hidden_dim=16", "method.output_dim=8", "method.local_dim=8"]
RANKS = [[], ["method.global_weight=0.1", "method.first_matches=3", "method.second_matches=2"]]


def drawn(method: Any, batch: Any) -> Any:
    return method.views(batch.image, seed=twin_seed(method), index=batch.index)


def test_a_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    """Both criteria from one pass of each view; the pooled feature is the mean of the map."""
    method, batch = prepared(tiny_config("vicregl", "method.first_matches=3", "method.second_matches=2"))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    views = drawn(twin, batch)
    maps = [twin.backbone.forward_dense(view.image) for view in views]
    z1, z2 = (twin.head(m.mean((2, 3))) for m in maps)
    cells = vicregl_loss([twin.local_head(m) for m in maps], [view.to_source for view in views], (3, 2))
    # variance and covariance are means over the views, where VICReg adds up the covariances
    torch.testing.assert_close(loss, 0.75 * vicreg_loss(z1, z2, 25, 25, 0.5) + 0.25 * cells)
    norms = [m for m in method.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert {int(n.num_batches_tracked) for n in norms} == {2}


def test_the_defaults_are_the_authors_and_heads_have_no_last_bias(tiny_method: Callable[..., Any]) -> None:
    whole = load_config(["method=vicregl"])
    config, optimizer = whole.method, whole.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("lars", 0.2, 1e-6)
    assert (config.global_weight, config.first_matches, config.second_matches) == (0.75, 20, 4)
    assert (config.hidden_dim, config.output_dim, config.local_dim) == (8192, 8192, 512)
    method = tiny_method("vicregl")
    assert method.head[-1].bias is None
    biases = [m.bias is None for m in method.local_head if isinstance(m, nn.Conv2d)]
    assert biases == [False, False, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [(["augment=swav", "augment.counts=[1,1]"], "one size"), (["method.first_matches=0"], "first_matches is 0")],
)
def test_settings_that_cannot_be(settings: list[str], message: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message):
        tiny_method("vicregl", *settings)
