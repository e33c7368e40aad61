"""INTL by hand, its trade-off, and its heads."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed

from selfsup.functional import intl_loss

ZERO_LAST = True
TINY = ["method.hidden_dim=16", "method.output_dim=24"]
RANKS = [[], ["augment.counts=[3]", "method.trace_weight=0.3", "method.output_dim=8"]]


@pytest.mark.parametrize("views", [2, 3])
def test_one_step_by_hand(views: int, tiny_config: Callable[..., Any]) -> None:
    """Every view by itself through network and head; β of a batch of 16 is 0.01."""
    method, batch = prepared(tiny_config("intl", f"augment.counts=[{views}]"))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    drawn = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    z = torch.stack([twin.head(twin.backbone(view.image)) for view in drawn])
    torch.testing.assert_close(loss, intl_loss(z, 0.01, 4))
    assert not torch.equal(loss, intl_loss(z, 0.02, 4))
    assert not torch.equal(loss, intl_loss(z, 0.01, 3))


@pytest.mark.parametrize(("batch_size", "weight"), [(16, 0.01), (64, 0.03), (4, 0.0)])
def test_the_trace_weight_follows_the_batch(batch_size: int, weight: float, tiny_method: Callable[..., Any]) -> None:
    method = tiny_method("intl", f"batch_size={batch_size}")
    assert method.trace_weight == pytest.approx(weight)
    assert method.trace_weight == pytest.approx(max(0.0, 0.01 * (math.log2(batch_size) - 3)))
    assert tiny_method("intl", "method.trace_weight=0.7").trace_weight == 0.7


def test_every_view_receives_a_gradient(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("intl"))
    outputs: list[torch.Tensor] = []
    method.head.register_forward_hook(lambda module, args, out: (out.retain_grad(), outputs.append(out))[0])
    method.training_step(batch, 0).backward()
    assert len(outputs) == 2
    assert all(bool(out.grad.ne(0).any()) for out in outputs)


def test_the_head_is_the_authors(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("intl"))
    hidden = ["Linear", "BatchNorm1d", "ReLU"]
    assert [type(m).__name__ for m in method.head] == [*hidden, *hidden, "Linear"]
    assert [m.bias is not None for m in method.head if hasattr(m, "in_features")] == [False, False, True]
    defaults = type(tiny_config("intl").method)()
    assert (defaults.iterations, defaults.trace_weight, defaults.hidden_dim, defaults.output_dim) == (
        4,
        None,
        2048,
        2048,
    )
