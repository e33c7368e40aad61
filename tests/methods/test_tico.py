"""TiCo: a step by hand, what it remembers, and the momentum encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed

from selfsup.config import load_config
from selfsup.errors import UserError
from selfsup.functional import tico_loss

TINY = ["method.hidden_dim=16", "method.output_dim=8"]
RANKS = [[], ["method.memory=0.5", "method.covariance_weight=20"]]


def drawn(method: Any, batch: Any) -> Any:
    return method.views(batch.image, seed=twin_seed(method), index=batch.index)


def test_two_steps_by_hand(tiny_config: Callable[..., Any]) -> None:
    """The second contrasts with what the first remembered; keys come from the momentum encoder."""
    method, batch = prepared(tiny_config("tico"))
    remembered = torch.zeros(8, 8)
    for number in range(2):
        twin = copy.deepcopy(method)
        loss = method.training_step(batch, number)
        first, second = drawn(twin, batch)
        query = twin.head(twin.backbone(first.image))
        expected, remembered = tico_loss(query, twin.target.module(second.image), remembered, 0.9, 8.0)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(method.covariance, remembered)
        units = torch.nn.functional.normalize(query.detach())
        if number == 0:
            torch.testing.assert_close(remembered, 0.1 * units.T @ units / len(units))
    assert "covariance" in method.state_dict()


def test_the_momentum_encoder_follows_along_a_cosine(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("tico", "method.momentum=0.5"))
    before = [p.clone() for p in method.target.parameters()]
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    method.after_optimizer_step()
    assert method.target.momentum == 0.5
    for slow, old in zip(method.target.parameters(), before, strict=True):
        torch.testing.assert_close(slow, old + 0.5)


def test_the_defaults() -> None:
    config = load_config(["method=tico"])
    assert (config.method.covariance_weight, config.method.memory) == (8.0, 0.9)
    assert (config.method.hidden_dim, config.method.output_dim) == (4096, 256)


def test_a_memory_of_one_is_refused(tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="memory is 1"):
        tiny_method("tico", "method.memory=1")
