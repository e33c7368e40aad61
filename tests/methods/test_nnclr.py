"""NNCLR by hand: neighbours from the queue as it was, both directions, then the first view's projections go in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import nn

from selfsup.errors import UserError
from selfsup.functional import cross_view_nce

TINY = ["method.queue_size=48", "method.hidden_dim=16", "method.output_dim=8", "method.predictor_dim=16"]
RANKS = [[], ["method.queue_size=37"]]


def test_step_contrasts_old_neighbours_then_enqueues_the_first_view(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("nnclr"))
    twin = copy.deepcopy(method)
    old = method.queue.negatives()
    loss = method.training_step(batch, 0)

    images = [v.image for v in twin.views(batch.image, seed=twin_seed(method), index=batch.index)]
    z1, z2 = (twin.projector(twin.backbone(image)) for image in images)
    p1, p2 = (twin.predictor(z) for z in (z1, z2))
    near1, near2 = (old[torch.cdist(nn.functional.normalize(z), old).argmin(1)] for z in (z1, z2))
    # negatives are the other images' predictions
    expected = (cross_view_nce(near1, p2, 0.1) + cross_view_nce(near2, p1, 0.1)) / 2
    torch.testing.assert_close(loss, expected)

    count = len(z1)
    torch.testing.assert_close(method.queue.keys[:count], nn.functional.normalize(z1))
    assert torch.equal(method.queue.keys[count:], old[count:])
    assert int(method.queue.pointer) == count


def test_gradient_enters_by_the_predictions_only(tiny_config: Callable[..., Any]) -> None:
    """Neighbours are constants: with the predictor cut off, nothing else moves."""
    method, batch = prepared(tiny_config("nnclr"))
    method.predictor.register_forward_hook(lambda module, args, out: out.detach())
    assert not method.training_step(batch, 0).requires_grad
    assert not method.queue.keys.requires_grad


def test_both_views_are_predicted(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("nnclr"))
    outputs: list[torch.Tensor] = []
    method.predictor.register_forward_hook(lambda module, args, out: (out.retain_grad(), outputs.append(out))[0])
    method.training_step(batch, 0).backward()
    assert len(outputs) == 2
    assert all(bool(out.grad.ne(0).any()) for out in outputs)


def test_heads_are_the_papers(tiny_config: Callable[..., Any]) -> None:
    """2048-2048-256 with BatchNorm after every layer, 4096-256 with BatchNorm after the hidden one."""
    method, _ = prepared(tiny_config("nnclr"))
    hidden = ["Linear", "BatchNorm1d", "ReLU"]
    assert [type(m).__name__ for m in method.projector] == [*hidden, *hidden, "Linear", "BatchNorm1d"]
    assert [type(m).__name__ for m in method.predictor] == [*hidden, "Linear"]
    defaults = type(tiny_config("nnclr").method)()
    assert (defaults.hidden_dim, defaults.output_dim, defaults.predictor_dim) == (2048, 256, 4096)
    assert (defaults.queue_size, defaults.temperature) == (98304, 0.1)


def test_a_queue_smaller_than_a_batch_is_refused(tiny_config: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"method\.queue_size=15"):
        prepared(tiny_config("nnclr", "method.queue_size=15"))
    prepared(tiny_config("nnclr", "method.queue_size=16"))
