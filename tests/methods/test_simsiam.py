"""SimSiam by hand, and what implementations of it get wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from test_contract import prepared, twin_seed
from torch import nn

from selfsup.config import load_config
from selfsup.data import load_splits
from selfsup.engine.training import build_method

ZERO_LAST = True
TINY = ["method.hidden_dim=16", "method.output_dim=12", "method.predictor_dim=6"]


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def test_one_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    """Value, and the gradient with both projections taken as constants where they are targets."""
    method, batch = prepared(tiny_config("simsiam"))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    z1, z2 = (
        twin.projector(twin.backbone(view.image))
        for view in twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    )
    constant1, constant2 = z1.detach().clone(), z2.detach().clone()
    expected = -0.5 * cosine(twin.predictor(z1), constant2).mean() - 0.5 * cosine(twin.predictor(z2), constant1).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_without_the_predictor_s_path_no_gradient_is_left(tiny_config: Callable[..., Any]) -> None:
    """All that reaches the encoder passes through the predictor: the targets are constants."""
    method, batch = prepared(tiny_config("simsiam"))
    method.predictor.register_full_backward_hook(lambda module, inward, outward: (torch.zeros_like(inward[0]),))
    method.training_step(batch, 0).backward()
    for parameter in [*method.backbone.parameters(), *method.projector.parameters()]:
        assert not parameter.grad.any()
    assert all(p.grad.any() for p in method.predictor.parameters())


def test_the_views_do_not_share_batch_norm_statistics(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("simsiam"))
    passes: list[int] = []
    for part in (method.backbone, method.projector, method.predictor):
        part.register_forward_hook(lambda module, args, out: passes.append(len(args[0])))
    method.training_step(batch, 0)
    assert passes == [16] * 6


@pytest.mark.parametrize("schedule", ["cosine", "steps"])
def test_the_predictor_s_learning_rate_stays_constant(
    schedule: str, tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["optimizer.warmup_epochs=0.5", f"optimizer.schedule={schedule}", "optimizer.milestones=[1]"]
    monkeypatch.setattr(pl.Trainer, "estimated_stepping_batches", 8)
    method, _ = prepared(tiny_config("simsiam", "optimizer.lr=0.05", "batch_size=32", *overrides))
    built = method.configure_optimizers()
    optimizer, schedule_ = built["optimizer"], built["lr_scheduler"]["scheduler"]
    mine = {id(p) for p in method.predictor.parameters()}
    kinds = [{id(p) in mine for p in group["params"]} for group in optimizer.param_groups]
    assert sorted(kinds, key=str) == [{False}, {True}]
    rates: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(9):
        for kind, group in zip(kinds, optimizer.param_groups, strict=True):
            rates[next(iter(kind))].append(group["lr"])
        optimizer.step()
        schedule_.step()
    scaled = 0.05 * 32 / 256
    assert rates[True] == pytest.approx([scaled] * 9)
    assert rates[False][0] == 0
    assert max(rates[False]) == pytest.approx(scaled)
    assert rates[False][-1] < 0.2 * scaled


def test_all_trained_parameters_are_in_one_group(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("simsiam", "optimizer.exclude_1d=true"))
    listed = [id(p) for group in method.param_groups() for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in method.parameters()}
    assert {group["weight_decay"] for group in method.param_groups() if group.get("constant_lr")} == {0.0, 1e-4}


def test_heads_are_the_paper_s() -> None:
    config = load_config(["method=simsiam", "backbone=resnet_tiny", "data.train_size=40", "data.test_size=1"])
    pl.seed_everything(0, verbose=False)
    method = build_method(config, load_splits(config.data))
    dim = method.backbone.dim
    linear = [layer for layer in method.projector if isinstance(layer, nn.Linear)]
    norms = [layer for layer in method.projector if isinstance(layer, nn.BatchNorm1d)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(dim, 2048), (2048, 2048), (2048, 2048)]
    assert all(layer.bias is None for layer in linear)
    assert [norm.affine for norm in norms] == [True, True, False]
    assert method.projector[-1] is norms[-1]
    squeeze, norm, _, widen = method.predictor
    assert (squeeze.in_features, squeeze.out_features, squeeze.bias) == (2048, 512, None)
    assert isinstance(norm, nn.BatchNorm1d)
    assert (widen.in_features, widen.out_features, widen.bias is not None) == (512, 2048, True)
    assert not config.optimizer.exclude_1d  # decay on everything, as the authors' SGD


def test_projection_std_tells_collapse_from_spread(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("simsiam"))
    views = method.views(batch.image, seed=0, index=batch.index)
    spread = method.step(views, batch).logs["projection_std"]
    assert 0.1 < float(spread) <= 12**-0.5 + 1e-6
    method.projector[-1].register_forward_hook(lambda module, args, out: torch.ones_like(out) + 0 * out)
    assert float(method.step(views, batch).logs["projection_std"]) == pytest.approx(0, abs=1e-6)
