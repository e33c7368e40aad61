"""SMoG by hand: groups move before they are predicted, views take turns, and groups are made anew."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import nn

from selfsup.errors import UserError
from selfsup.functional import group_prediction, momentum_groups, spherical_lloyd
from selfsup.methods import Method
from selfsup.random import fold_in

TINY = [
    "method.groups=12",
    "method.queue_size=40",
    "method.hidden_dim=16",
    "method.output_dim=8",
    "method.reset_steps=3",
    "method.group_momentum=0.9",
]
RANKS = [[], ["method.reset_steps=2"], ["method.reset_steps=0"]]


def unit(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(x, dim=1)


@pytest.mark.parametrize("done", [0, 1])
def test_one_step_by_hand(done: int, tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Even steps predict from the first view, odd ones from the second."""
    method, batch = prepared(tiny_config("smog"))
    monkeypatch.setattr(Method, "steps_done", property(lambda self: done))
    with torch.no_grad():
        for parameter in method.target.parameters():  # a target that has drifted apart
            parameter.mul_(1.1).add_(0.01 * torch.randn_like(parameter))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    views = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    z = twin.projector(twin.backbone(views[done].image))
    with torch.no_grad():
        other = twin.target.module(views[1 - done].image)
    moved = momentum_groups(z, twin.groups, 0.9)
    expected = group_prediction(twin.predictor(z), moved, other @ twin.groups.T, 0.1)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(method.groups, moved.detach())
    torch.testing.assert_close(method.queue.keys[: len(z)], unit(z))
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_the_gradient_flows_through_the_groups_too(tiny_config: Callable[..., Any]) -> None:
    """With the predictor cut off from the embedding, the backbone still learns, by the groups."""
    method, batch = prepared(tiny_config("smog"))
    method.predictor.register_forward_hook(lambda module, args, out: out.detach())
    method.training_step(batch, 0).backward()
    assert any(bool(p.grad.ne(0).any()) for p in method.backbone.parameters() if p.grad is not None)
    assert not method.groups.requires_grad


@pytest.mark.parametrize(("done", "reset"), [(0, False), (1, False), (2, True), (3, False), (5, True)])
def test_every_so_many_steps_groups_and_momentum_encoder_are_made_anew(
    done: int, reset: bool, tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, batch = prepared(tiny_config("smog", "method.momentum=0.75"))
    for _ in range(2):  # 32 of 40 places of the queue
        method.training_step(batch, 0)
    monkeypatch.setattr(Method, "steps_done", property(lambda self: done))
    with torch.no_grad():
        for parameter in (*method.backbone.parameters(), *method.projector.parameters()):
            parameter.add_(torch.randn_like(parameter))
    online = [*method.backbone.parameters(), *method.projector.parameters()]
    before, groups = [p.clone() for p in method.target.parameters()], method.groups.clone()
    method.after_optimizer_step()
    kept = 0.0 if reset else 0.75
    for new, old, source in zip(method.target.parameters(), before, online, strict=True):
        torch.testing.assert_close(new, kept * old + (1 - kept) * source)
    if not reset:
        assert torch.equal(method.groups, groups)
        return
    stored = method.queue.keys[: min(40, 16 * (done + 1))]
    generator = torch.Generator().manual_seed(fold_in(method.seed, done + 1))
    start = stored[torch.randperm(len(stored), generator=generator)[:12]]
    torch.testing.assert_close(method.groups, spherical_lloyd(stored, start, 10)[0])


def test_heads_are_the_papers_and_defaults_lightlys(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("smog"))
    hidden = ["Linear", "BatchNorm1d", "ReLU"]
    assert [type(m).__name__ for m in method.projector] == [*hidden, "Linear", "BatchNorm1d"]
    assert [type(m).__name__ for m in method.predictor] == [*hidden, "Linear"]
    defaults = type(tiny_config("smog").method)()
    assert (defaults.group_momentum, defaults.momentum, defaults.temperature) == (0.99, 0.99, 0.1)
    assert (defaults.reset_steps, defaults.hidden_dim, defaults.output_dim) == (300, 2048, 128)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method.queue_size=15", "method.groups=4"], "queue_size=15 is smaller than the 16 images of a step"),
        (["method.groups=41"], "queue_size=40 is smaller than the 41 groups"),
    ],
)
def test_a_queue_that_is_too_small_is_refused(
    settings: list[str], message: str, tiny_method: Callable[..., Any]
) -> None:
    with pytest.raises(UserError, match=message):
        tiny_method("smog", *settings)
    tiny_method("smog", *settings, "method.reset_steps=0")
