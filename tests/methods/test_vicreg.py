"""VICReg: a step by hand, its head, and batches that are not full."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import nn

from selfsup.config import load_config
from selfsup.data import load_splits
from selfsup.engine.training import build_method
from selfsup.errors import UserError
from selfsup.types import Batch

ZERO_LAST = True
TINY = ["method.hidden_dim=16", "method.output_dim=8"]
# 2 · 7 is below 16 images: the ranks sum their products; 2 · 8 is not: they gather embeddings
RANKS = [["method.output_dim=7"], []]


def test_a_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    """Networks a view at a time; torch's own covariance over the images there are; the default weights."""
    method, batch = prepared(tiny_config("vicreg"))
    batch = Batch(batch.image[:6], None, batch.index[:6])  # batch_size is 16
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)

    views = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    z1, z2 = (twin.head(twin.backbone(view.image)) for view in views)
    expected = 25 * (z1 - z2).square().mean()
    for z in (z1, z2):
        covariance = torch.cov(z.T)
        spread = (z.var(0) + 1e-4).sqrt()
        expected = expected + 25 * (1 - spread).clamp_min(0).mean() / 2
        expected = expected + (covariance - covariance.diag().diag()).square().sum() / 8
    torch.testing.assert_close(loss, expected)
    norms = [m for m in method.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert {int(n.num_batches_tracked) for n in norms} == {2}


@pytest.mark.parametrize("term", ["invariance", "variance", "covariance"])
def test_each_weight_is_its_term_s(term: str, tiny_config: Callable[..., Any]) -> None:
    def loss(**weights: float) -> float:
        settings = [f"method.{name}_weight={weights.get(name, 0.0)}" for name in names]
        method, batch = prepared(tiny_config("vicreg", *settings))
        return float(method.training_step(batch, 0))

    names = ("invariance", "variance", "covariance")
    alone = loss(**{term: 1.0})
    assert alone > 0
    rest = {name: 1.0 for name in names if name != term}
    assert loss(**rest, **{term: 3.0}) == pytest.approx(loss(**rest) + 3 * alone, rel=1e-4)


def test_the_default_head_and_optimiser_are_the_authors() -> None:
    config = load_config(["method=vicreg", "data.train_size=400", "backbone=resnet_tiny"])
    splits = load_splits(config.data)
    with torch.device("meta"):
        head = build_method(config, splits).head
    linear = [m for m in head if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linear] == [8192, 8192, 8192]
    assert [m.bias is None for m in linear] == [False, False, True]
    assert [type(m) for m in head[-3:]] == [nn.BatchNorm1d, nn.ReLU, nn.Linear]
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("lars", 0.2, 1e-6)
    assert config.augment.recipe == "byol"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("method.head_layers=0", "method.head_layers is 0; it must be at least 1"),
        ("method.variance_weight=-1", "must be at least 0"),
        ("augment.counts=[3]", "takes 2"),
    ],
)
def test_settings_that_cannot_be(setting: str, message: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message):
        tiny_method("vicreg", setting)
