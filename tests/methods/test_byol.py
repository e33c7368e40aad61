"""BYOL by hand, and what implementations of it get wrong."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from test_contract import prepared, twin_seed
from torch import nn

from selfsup.config import load_config
from selfsup.data import load_splits
from selfsup.engine.training import build_method, train
from selfsup.errors import UserError

ZERO_LAST = True
TINY = ["method.hidden_dim=16", "method.output_dim=8"]


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=1, keepdim=True)


def test_one_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    """Each view alone through each network, squared distances of unit vectors, both ways."""
    method, batch = prepared(tiny_config("byol"))
    with torch.no_grad():
        for parameter in method.target.parameters():  # a target that has drifted apart
            parameter.mul_(1.1).add_(0.01 * torch.randn_like(parameter))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    first, second = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    p1, p2 = (twin.predictor(twin.projector(twin.backbone(view.image))) for view in (first, second))
    z1, z2 = (twin.target.module(view.image).detach() for view in (first, second))
    expected = (unit(p1) - unit(z2)).pow(2).sum(1).mean() + (unit(p2) - unit(z1)).pow(2).sum(1).mean()
    torch.testing.assert_close(loss, expected)

    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_the_views_do_not_share_batch_norm_statistics(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("byol"))
    passes: dict[str, list[int]] = {"online": [], "target": []}
    for name, network in (("online", method.backbone), ("target", method.target.module)):
        network.register_forward_hook(lambda module, args, out, name=name: passes[name].append(len(args[0])))
    method.training_step(batch, 0)
    assert passes == {"online": [16, 16], "target": [16, 16]}


def test_no_gradient_reaches_the_target(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("byol"))
    method.training_step(batch, 0).backward()
    assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())
    trained = {id(p) for group in method.param_groups() for p in group["params"]}
    assert trained == {id(p) for p in method.parameters() if p.requires_grad}
    assert not trained & {id(p) for p in method.target.parameters()}


def test_the_target_starts_as_the_online_encoder_and_has_no_predictor(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("byol"))
    online = [*method.backbone.parameters(), *method.projector.parameters()]
    target = list(method.target.parameters())
    assert len(target) == len(online)
    assert all(torch.equal(t, o) and t is not o for t, o in zip(target, online, strict=True))


@pytest.mark.parametrize(("done", "momentum"), [(0, 0.9), (5, 0.95), (10, 1.0)])
def test_every_parameter_of_the_target_follows_with_a_momentum_that_rises_to_one(
    done: int, momentum: float, tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Biases and BatchNorm scales too; buffers never: the target's BatchNorm sees its own batches."""
    method, batch = prepared(tiny_config("byol", "method.momentum=0.9"))
    method.total_steps = 10
    monkeypatch.setattr(type(method), "progress", property(lambda self: done / self.total_steps))
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = [p.clone() for p in method.target.parameters()]
    buffers = [b.clone() for b in method.target.buffers()]
    method.after_optimizer_step()
    online = [*method.backbone.parameters(), *method.projector.parameters()]
    for new, old, source in zip(method.target.parameters(), before, online, strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * source)
    assert all(torch.equal(b, old) for b, old in zip(method.target.buffers(), buffers, strict=True))
    method.training_step(batch, 0)
    counts = [b for name, b in method.target.named_buffers() if name.endswith("num_batches_tracked")]
    assert all(int(count) == 2 for count in counts)  # in training mode, once a view


def test_the_schedule_is_a_function_of_the_optimiser_step(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a whole training of 8 steps: m_t = 1 - (1 - m0) (1 + cos(π t / 8)) / 2, from t = 0."""
    from selfsup.nn import MomentumEncoder

    seen = []
    monkeypatch.setattr(MomentumEncoder, "update", lambda self, online, momentum: seen.append(momentum))
    train(tiny_config("byol"))
    assert seen == pytest.approx([1 - 0.004 * (1 + math.cos(math.pi * t / 8)) / 2 for t in range(8)], abs=1e-12)


def test_heads_are_the_paper_s() -> None:
    config = load_config(["method=byol", "backbone=resnet_tiny", "data.train_size=40", "data.test_size=1"])
    pl.seed_everything(0, verbose=False)
    method = build_method(config, load_splits(config.data))
    for head, width in ((method.projector, method.backbone.dim), (method.predictor, 256)):
        first, norm, activation, last = head
        assert (first.in_features, first.out_features, first.bias is not None) == (width, 4096, True)
        assert isinstance(norm, nn.BatchNorm1d)
        assert isinstance(activation, nn.ReLU)
        assert (last.in_features, last.out_features, last.bias) == (4096, 256, None)
    assert config.optimizer.name == "lars"
    assert config.augment.recipe == "byol"


def test_the_two_views_are_drawn_from_two_distributions(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("byol", "augment.small=false"))
    first, second = method.views.recipes
    assert (first.blur_p, first.solarize_p, second.blur_p, second.solarize_p) == (1.0, 0.0, 0.1, 0.2)


def test_a_momentum_out_of_range_is_named(tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"method\.momentum"):
        tiny_method("byol", "method.momentum=1.5")
