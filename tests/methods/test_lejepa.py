"""LeJEPA: a step by hand, directions that are new in each step, its head and its views."""

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
from selfsup.functional import sigreg

TINY = ["method.hidden_dim=16", "method.output_dim=8", "method.slices=12", "augment.counts=[2,1]"]
RANKS = [["method.regularizer_weight=0.5"], ["augment.counts=[3]"]]


def test_a_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    """Small crops are drawn to the mean of the large ones, and SIGReg has the draw of this step."""
    method, batch = prepared(tiny_config("lejepa"))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)

    large1, large2, small = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    assert small.image.shape[-1] < large1.image.shape[-1]
    features = torch.cat([twin.backbone(torch.cat([large1.image, large2.image])), twin.backbone(small.image)])
    z = twin.head(features).unflatten(0, (3, -1))
    center = (z[0] + z[1]) / 2
    apart = ((z[0] - center) ** 2 + (z[1] - center) ** 2 + (z[2] - center) ** 2).mean() / 3
    drawn = torch.Generator().manual_seed(method._batch_seed)
    torch.testing.assert_close(loss, 0.05 * sigreg(z, 12, 17, generator=drawn) + 0.95 * apart)


def test_directions_are_new_in_each_step_and_the_same_again(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("lejepa", "method.regularizer_weight=1"))
    first, other, again = (float(method.training_step(batch, number).detach()) for number in (0, 1, 0))
    assert first == again
    assert first != other


def test_the_default_head_and_views_are_the_authors() -> None:
    config = load_config(["method=lejepa", "data.image_size=224"])
    assert config.augment.counts == [2, 6]
    assert config.augment.recipe == "lejepa"
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.scaling, optimizer.weight_decay) == ("adamw", 5e-4, "none", 0.05)


def test_the_head_has_batch_norm_behind_hidden_layers(tiny_method: Callable[..., Any]) -> None:
    head = tiny_method("lejepa").head
    assert [type(m) for m in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("method.regularizer_weight=1.5", "regularizer_weight is 1.5"),
        ("method.knots=1", "must be at least 2"),
        ("augment.counts=[1]", "takes at least 2"),
    ],
)
def test_settings_that_cannot_be(setting: str, message: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message):
        tiny_method("lejepa", setting)
