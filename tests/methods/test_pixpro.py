"""PixPro by hand, and what implementations of it get wrong."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import Tensor, nn

from selfsup.config import load_config
from selfsup.engine.training import train
from selfsup.errors import UserError
from selfsup.functional import location_grid
from selfsup.methods import Method
from selfsup.nn import MomentumEncoder
from selfsup.types import View

TINY = ["method.hidden_dim=16", "method.output_dim=8"]
RANKS = [["method.instance_weight=1"]]


def drift(network: nn.Module) -> None:
    """Take a momentum network away from the online one."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.2).add_(0.1 * torch.randn_like(parameter))


def near(one: View, other: View, image: int, size: int, threshold: float) -> Tensor:
    """Which cells of two views match, from where the corners of their cells lie."""
    grids = [location_grid(view.to_source[image : image + 1], size).reshape(-1, 2) for view in (one, other)]
    sides = [(view.to_source[image, 0, 0], view.to_source[image, 1, 1]) for view in (one, other)]
    diagonal = max(float((w**2 + h**2).sqrt()) / size for w, h in sides)
    return (grids[0][:, None] - grids[1][None]).norm(dim=2) / diagonal < threshold


def unit(x: Tensor, dim: int) -> Tensor:
    return x / x.norm(dim=dim, keepdim=True)


def direction(method: Method, x: Tensor, target: Tensor, one: View, other: View) -> Tensor:
    """-2 times the mean over images of the mean cosine of matched cells; 0 where none match."""
    propagated = unit(method.propagation(x).flatten(2), 1)
    target = unit(target.flatten(2), 1)
    losses = []
    for n in range(len(x)):
        matches = near(one, other, n, x.shape[-1], method.threshold)
        cosines = propagated[n].T @ target[n]
        losses.append(cosines[matches].mean() if matches.any() else cosines.sum() * 0)
    return -2 * torch.stack(losses).mean()


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_one_step_by_hand(weight: float, tiny_config: Callable[..., Any]) -> None:
    """Each view alone through each network, both directions added, the instance branch beside them."""
    # 64 pixels: maps of 16 cells; small crops: some images without a match
    settings = ["data.image_size=64", "augment.override={scale: [0.08, 0.3]}", f"method.instance_weight={weight}"]
    method, batch = prepared(tiny_config("pixpro", *settings))
    drift(method.target)
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)

    views = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    first, second = views
    maps = [twin.backbone.forward_dense(view.image) for view in views]
    x1, x2 = (twin.projector(features) for features in maps)
    target = twin.target.module
    with torch.no_grad():
        target_maps = [target.backbone.forward_dense(view.image) for view in views]
        t1, t2 = (target.head(features) for features in target_maps)
    expected = direction(twin, x1, t2, first, second) + direction(twin, x2, t1, second, first)
    some = [bool(near(first, second, n, 4, 0.7).any()) for n in range(len(batch.index))]
    assert set(some) == {True, False}
    if weight:
        means = [features.mean((2, 3)) for features in maps]
        p1, p2 = (unit(twin.instance_predictor[0](twin.instance_projector[0](mean)), 1) for mean in means)
        with torch.no_grad():
            z1, z2 = (unit(target.pooled_heads[0](features.mean((2, 3))), 1) for features in target_maps)
        expected = expected - 2 * weight * ((p1 * z2).sum(1).mean() + (p2 * z1).sum(1).mean())
    torch.testing.assert_close(loss, expected)

    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)
        else:
            assert ours.grad is None


def test_views_that_agree_reach_minus_four(tiny_config: Callable[..., Any]) -> None:
    """One direction is at best -2, whatever the number of matches: maps that are constant and equal."""
    method, batch = prepared(tiny_config("pixpro", "augment.override={scale: [0.9, 1.0]}"))
    for head in (method.projector, method.target.module.head):
        nn.init.zeros_(head[-1].weight)
        nn.init.ones_(head[-1].bias)
    with torch.no_grad():
        method.propagation.transform.weight.copy_(torch.eye(8)[:, :, None, None])
        method.propagation.transform.bias.zero_()
    assert method.training_step(batch, 0).item() == pytest.approx(-4, rel=1e-6)


def test_the_views_do_not_share_batch_norm_statistics(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("pixpro"))
    passes: dict[str, list[int]] = {"online": [], "target": []}
    for name, network in (("online", method.projector), ("target", method.target.module.head)):
        network.register_forward_hook(lambda module, args, out, name=name: passes[name].append(len(args[0])))
    method.training_step(batch, 0)
    assert passes == {"online": [16, 16], "target": [16, 16]}


def test_crops_apart_move_nothing(tiny_config: Callable[..., Any]) -> None:
    """No overlap in any image: a finite loss of 0 and gradients of 0."""
    method, batch = prepared(tiny_config("pixpro"))
    views = method.views(batch.image, seed=0, index=batch.index)
    corners = [torch.tensor([[0.4, 0, at], [0, 0.4, at]]).expand(16, -1, -1) for at in (0.0, 0.6)]
    output = method.step(tuple(View(v.image, c) for v, c in zip(views, corners, strict=True)), batch)
    assert output.loss.item() == 0
    assert output.logs["matched_cells"].item() == 0
    output.loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in method.parameters() if p.requires_grad)


def test_the_instance_branch_is_built_only_when_asked_for(tiny_config: Callable[..., Any]) -> None:
    without, _ = prepared(tiny_config("pixpro"))
    assert not [name for name, _ in without.named_parameters() if "instance" in name or "pooled" in name]
    branch, batch = prepared(tiny_config("pixpro", "method.instance_weight=1"))
    branch.training_step(batch, 0).backward()
    parameters = [p for name, p in branch.named_parameters() if "instance" in name]
    assert parameters
    assert all(p.grad is not None and p.grad.any() for p in parameters)
    assert len(branch.target.module.pooled_heads) == 1


def test_momentum_rises_along_the_training(tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight steps of a real run: 1 - 0.01·(1 + cos(πk/8))/2, a function of the step alone."""
    seen: list[float] = []
    original = MomentumEncoder.update

    def watch(self: MomentumEncoder, online: nn.Module, momentum: float) -> None:
        seen.append(momentum)
        original(self, online, momentum)

    monkeypatch.setattr(MomentumEncoder, "update", watch)
    train(tiny_config("pixpro"))
    halfway, quarter = 0.995, 1 - 0.01 * (1 + 0.5**0.5) / 2
    assert len(seen) == 8
    assert [seen[0], seen[2], seen[4]] == pytest.approx([0.99, quarter, halfway], abs=1e-12)
    assert seen == sorted(seen)


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.99), (50, 0.995), (100, 1.0)])
def test_target_follows_all_that_it_copies(step: int, momentum: float, tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("pixpro", "method.instance_weight=1"))
    drift(method.target)
    method.trainer = types.SimpleNamespace(global_step=step)  # type: ignore[assignment]
    method.total_steps = 100
    before = {name: p.clone() for name, p in method.target.module.named_parameters()}
    method.after_optimizer_step()
    online = {
        **{f"backbone.{name}": p for name, p in method.backbone.named_parameters()},
        **{f"head.{name}": p for name, p in method.projector.named_parameters()},
        **{f"pooled_heads.0.{name}": p for name, p in method.instance_projector[0].named_parameters()},
    }
    assert before.keys() == online.keys()
    for name, moved in method.target.module.named_parameters():
        torch.testing.assert_close(moved, momentum * before[name] + (1 - momentum) * online[name])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("method.momentum=1.5", "momentum"),
        ("method.threshold=0", "threshold"),
        ("method.gamma=0.5", "gamma"),
        ("method.instance_weight=-1", "instance_weight"),
        ("augment.sizes=[16]", "1×1"),
        ("augment.sizes=[32,64] augment.counts=[1,1] augment.recipe=swav", "one size"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting: str, words: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=words):
        tiny_method("pixpro", *setting.split())


def test_defaults_are_the_authors() -> None:
    method = load_config(["method=pixpro"]).method
    assert (method.threshold, method.gamma, method.momentum) == (0.7, 2.0, 0.99)
    assert (method.hidden_dim, method.output_dim, method.instance_weight) == (4096, 256, 0.0)
