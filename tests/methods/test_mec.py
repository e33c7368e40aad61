"""MEC by hand, and λ over the training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed

from selfsup.functional import mec_loss

ZERO_LAST = True
TINY = ["method.hidden_dim=16", "method.output_dim=12", "method.predictor_dim=6"]
RANKS = [[], ["method.order=3", "method.momentum=0.9", "method.warmup=1.0"]]


def test_one_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("mec"))
    with torch.no_grad():
        for parameter in method.target.parameters():  # a target that has drifted apart
            parameter.mul_(1.1).add_(0.01 * torch.randn_like(parameter))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    first, second = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    p1, p2 = (twin.predictor(twin.projector(twin.backbone(view.image))) for view in (first, second))
    z1, z2 = (twin.target.module(view.image).detach() for view in (first, second))
    weight = 12 / (64 * 16) / 8  # at the start an eighth of D / (ε² B)
    expected = (mec_loss(p1, z2, weight, 4) + mec_loss(p2, z1, weight, 4)) / 2
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
        else:
            assert ours.grad is None


@pytest.mark.parametrize(("progress", "times"), [(0.0, 8.0), (0.05, 4.5), (0.1, 1.0), (0.7, 1.0)])
def test_lambda_rises_in_the_first_tenth(
    progress: float, times: float, tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1/λ falls linearly from eight times ε² B / D, which is 32 for the authors' batch of 1024 and width of 2048."""
    method, _ = prepared(tiny_config("mec"))
    monkeypatch.setattr(type(method), "progress", property(lambda self: progress))
    assert 1 / method.weight == pytest.approx(times * 64 * 16 / 12)
    still, _ = prepared(tiny_config("mec", "method.warmup=0"))
    assert 1 / still.weight == pytest.approx(64 * 16 / 12)


def test_heads_are_simsiams(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("mec"))
    hidden = ["Linear", "BatchNorm1d", "ReLU"]
    assert [type(m).__name__ for m in method.projector] == [*hidden, *hidden, "Linear", "BatchNorm1d"]
    assert not method.projector[-1].affine
    assert [type(m).__name__ for m in method.predictor] == [*hidden, "Linear"]
    defaults = type(tiny_config("mec").method)()
    assert (defaults.hidden_dim, defaults.output_dim, defaults.predictor_dim) == (2048, 2048, 512)
    assert (defaults.distortion, defaults.order, defaults.warmup, defaults.momentum) == (64, 4, 0.1, 0.996)
