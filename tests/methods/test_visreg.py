"""VISReg: a step by hand, lines that are new in each step, its defaults."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed

from selfsup.config import load_config
from selfsup.errors import UserError
from selfsup.functional import visreg

TINY = ["method.hidden_dim=16", "method.output_dim=8", "method.slices=12", "augment.counts=[2,1]"]
RANKS = [["method.slices=13"], ["augment.counts=[3]"]]  # 13 lines: the ranks have not as many


def drawn(method: Any, batch: Any) -> Any:
    return method.views(batch.image, seed=twin_seed(method), index=batch.index)


def test_a_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("visreg"))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)

    large1, large2, small = drawn(twin, batch)
    features = torch.cat([twin.backbone(torch.cat([large1.image, large2.image])), twin.backbone(small.image)])
    z = twin.head(features).unflatten(0, (3, -1))
    center = (z[0] + z[1]) / 2
    apart = (z - center).square().mean()
    lines = torch.Generator().manual_seed(method._batch_seed)
    torch.testing.assert_close(loss, 0.9 * visreg(z, 12, lines) + 0.1 * apart)


def test_lines_are_new_in_each_step_and_the_same_again(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("visreg", "method.regularizer_weight=1"))
    first, other, again = (float(method.training_step(batch, number).detach()) for number in (0, 1, 0))
    assert first == again
    assert first != other


def test_views_and_optimiser_are_lejepa_s() -> None:
    mine, theirs = load_config(["method=visreg"]), load_config(["method=lejepa"])
    assert (mine.augment, mine.optimizer) == (theirs.augment, theirs.optimizer)


def test_a_weight_above_one_is_refused(tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="regularizer_weight is 2"):
        tiny_method("visreg", "method.regularizer_weight=2")
