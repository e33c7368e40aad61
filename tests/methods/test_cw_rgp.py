"""CW-RGP by hand, its random groups, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed

from selfsup.errors import UserError
from selfsup.functional import channel_whitening_mse

ZERO_LAST = True
TINY = ["method.hidden_dim=16", "method.output_dim=24", "method.subbatch_size=8", "method.groups=2"]
RANKS = [[], ["method.subbatch_size=4", "method.groups=4", "augment.counts=[3]", "method.normalize=false"]]


def test_one_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    """Views apart through the backbone, at once through the head, permutations by the seed of the batch."""
    method, batch = prepared(tiny_config("cw_rgp", "method.iterations=2"))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    drawn = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    z = twin.head(torch.cat([twin.backbone(view.image) for view in drawn])).unflatten(0, (2, -1))
    generator = torch.Generator().manual_seed(method._batch_seed)
    expected = [channel_whitening_mse(z, 8, 2, generator=generator) for _ in range(2)]
    torch.testing.assert_close(loss, (expected[0] + expected[1]) / 2)
    assert not torch.equal(*expected)
    again = copy.deepcopy(twin)
    again.trainer, again.log = method.trainer, method.log
    assert not torch.equal(loss, again.training_step(batch, 1))  # another batch of the epoch has other groups


def test_every_view_receives_a_gradient(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("cw_rgp"))
    outputs: list[torch.Tensor] = []
    method.backbone.register_forward_hook(lambda module, args, out: (out.retain_grad(), outputs.append(out))[0])
    method.training_step(batch, 0).backward()
    assert len(outputs) == 2
    assert all(bool(out.grad.ne(0).any()) for out in outputs)


def test_a_singular_covariance_stops_the_run_with_the_reason(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("cw_rgp"))
    method.head.register_forward_hook(lambda module, args, out: out * 0 + 1)
    loss = method.training_step(batch, 0)
    with pytest.raises(UserError, match=r"A covariance of CW-RGP was singular.*method\.eps=1e-4"):
        method.on_before_backward(loss)
    white, batch = prepared(tiny_config("cw_rgp", "method.eps=0.1"))
    white.on_before_backward(white.training_step(batch, 0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method.groups=5"], r"method\.groups=5 must divide method\.output_dim=24"),
        (["method.groups=3"], r"more channels than method\.subbatch_size=8"),
        (["method.subbatch_size=5"], r"method\.subbatch_size=5 does not divide batch_size=16"),
    ],
)
def test_settings_that_cannot_be(settings: list[str], message: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message):
        tiny_method("cw_rgp", *settings)


def test_the_head_is_the_authors(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("cw_rgp"))
    assert [type(m).__name__ for m in method.head] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    defaults = type(tiny_config("cw_rgp").method)()
    assert (defaults.subbatch_size, defaults.groups, defaults.iterations, defaults.eps) == (64, 4, 1, 0.0)
    assert (defaults.hidden_dim, defaults.output_dim) == (1024, 512)
