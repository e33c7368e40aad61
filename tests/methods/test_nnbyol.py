"""NNBYOL by hand: neighbours of the target's projections in the queue as it was, both directions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import nn

from selfsup.errors import UserError

TINY = ["method.queue_size=48", "method.hidden_dim=16", "method.output_dim=8"]
RANKS = [[], ["method.queue_size=37", "method.momentum=0.9"]]


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=1, keepdim=True)


def test_one_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("nnbyol"))
    with torch.no_grad():
        for parameter in method.target.parameters():  # a target that has drifted apart
            parameter.mul_(1.1).add_(0.01 * torch.randn_like(parameter))
    twin = copy.deepcopy(method)
    old = method.queue.negatives()
    loss = method.training_step(batch, 0)

    first, second = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    p1, p2 = (twin.predictor(twin.projector(twin.backbone(view.image))) for view in (first, second))
    z1, z2 = (twin.target.module(view.image).detach() for view in (first, second))
    near1, near2 = (old[torch.cdist(unit(z), old).argmin(1)] for z in (z1, z2))
    expected = (unit(p1) - near2).square().sum(1).mean() + (unit(p2) - near1).square().sum(1).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)

    count = len(z1)
    torch.testing.assert_close(method.queue.keys[:count], unit(z1))
    assert torch.equal(method.queue.keys[count:], old[count:])
    assert int(method.queue.pointer) == count


def test_with_the_targets_themselves_in_the_queue_it_is_byol(tiny_config: Callable[..., Any]) -> None:
    """A projection's nearest neighbour is then itself: the same networks give BYOL's loss."""
    method, batch = prepared(tiny_config("nnbyol"))
    byol, _ = prepared(tiny_config("byol"))
    byol.load_state_dict({k: v for k, v in method.state_dict().items() if not k.startswith("queue")})
    views = method.views(batch.image, seed=twin_seed(method), index=batch.index)
    twin = copy.deepcopy(method)
    with torch.no_grad():
        method.queue.keys[:32] = torch.cat([unit(twin.target.module(view.image)) for view in views])
    torch.testing.assert_close(method.training_step(batch, 0), byol.training_step(batch, 0))


def test_the_target_follows_with_a_momentum_that_rises_to_one(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, _ = prepared(tiny_config("nnbyol", "method.momentum=0.9"))
    monkeypatch.setattr(type(method), "progress", property(lambda self: 0.5))
    with torch.no_grad():
        for parameter in (*method.backbone.parameters(), *method.projector.parameters()):
            parameter.add_(torch.randn_like(parameter))
    before = [p.clone() for p in method.target.parameters()]
    method.after_optimizer_step()
    online = [*method.backbone.parameters(), *method.projector.parameters()]
    for new, old, source in zip(method.target.parameters(), before, online, strict=True):
        torch.testing.assert_close(new, 0.95 * old + 0.05 * source)


def test_heads_are_byols(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("nnbyol"))
    for head in (method.projector, method.predictor):
        assert [type(m) for m in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    defaults = type(tiny_config("nnbyol").method)()
    assert (defaults.hidden_dim, defaults.output_dim, defaults.queue_size, defaults.momentum) == (
        4096,
        256,
        65536,
        0.99,
    )


def test_a_queue_smaller_than_a_batch_is_refused(tiny_config: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"method\.queue_size=15"):
        prepared(tiny_config("nnbyol", "method.queue_size=15"))
