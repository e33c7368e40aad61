"""MoCo v1 beside v2: the temperature, the head, the recipe, the registered name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from test_contract import prepared
from torch import nn

from selfsup.config import load_config
from selfsup.methods import MoCoConfig, MoCoV1Config

TINY = ["method.queue_size=48", "method.bn_groups=4"]
RANKS = [["method.bn_groups=2"]]


def test_v1_has_a_linear_head_and_v2_a_hidden_layer(tiny_config: Callable[..., Any]) -> None:
    first, _ = prepared(tiny_config("moco_v1"))
    second, _ = prepared(tiny_config("moco"))
    assert [type(m) for m in first.head] == [nn.Linear]
    assert [type(m) for m in second.head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert (first.temperature, second.temperature) == (0.07, 0.2)
    assert type(first) is type(second)


def test_v1_and_v2_bring_their_own_views() -> None:
    first, second = load_config(["method=moco_v1"]), load_config(["method=moco"])
    assert (first.augment.recipe, second.augment.recipe) == ("moco_v1", "moco_v2")
    assert type(first.method) is MoCoV1Config
    assert type(second.method) is MoCoConfig
    assert first.optimizer == second.optimizer
