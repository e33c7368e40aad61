"""DINO by hand: teacher, centre, temperatures and the last layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed

from selfsup.checkpoint import read_checkpoint
from selfsup.config import load_config
from selfsup.engine.training import train
from selfsup.errors import UserError
from selfsup.functional import dino_loss
from selfsup.opened import load_backbone

TINY = ["augment.counts=[2,2]", "method.output_dim=24", "method.hidden_dim=16", "method.bottleneck_dim=8"]
RANKS = [
    [],
    ["method.head_batch_norm=true"],
    ["method.freeze_last_layer_epochs=0", "method.momentum=0.9"],
]


def at_epoch(method: Any, epoch: int) -> None:
    method.trainer.fit_loop.epoch_progress.current.completed = epoch
    assert method.current_epoch == epoch


def test_one_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("dino"))
    with torch.no_grad():
        method.center.copy_(0.1 * torch.randn(24))
        for parameter in method.teacher.parameters():  # a teacher that is not the student
            parameter.add_(0.05 * torch.randn_like(parameter))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    views = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    teacher = twin.teacher.module(torch.cat([v.image for v in views[:2]])).detach()
    large, small = (twin.head(twin.backbone(torch.cat([v.image for v in views[i : i + 2]]))) for i in (0, 2))
    expected = dino_loss([*large.chunk(2), *small.chunk(2)], teacher.chunk(2), twin.center, 0.1, 0.04)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(method.center, 0.9 * twin.center + 0.1 * teacher.mean(0))  # after the loss
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_the_teacher_sees_global_views_only_in_train_mode_and_gets_no_gradient(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("dino", "augment.counts=[2,3]"))
    seen: dict[str, list[tuple[int, ...]]] = {"student": [], "teacher": []}
    for name, network in (("student", method.backbone), ("teacher", method.teacher.module[0])):
        network.register_forward_hook(lambda module, args, out, name=name: seen[name].append(tuple(args[0].shape)))
    method.training_step(batch, 0).backward()
    assert seen == {"student": [(32, 3, 32, 32), (48, 3, 14, 14)], "teacher": [(32, 3, 32, 32)]}
    assert all(module.training for module in method.teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    trained = {id(p) for group in method.param_groups() for p in group["params"]}
    assert not trained & {id(p) for p in method.teacher.parameters()}
    assert len(trained) == len([*method.backbone.parameters(), *method.head.parameters()])


def test_the_teacher_begins_as_the_student_and_follows_with_a_momentum_that_rises_to_one(
    tiny_config: Callable[..., Any],
) -> None:
    method, _ = prepared(tiny_config("dino", "method.momentum=0.6"))
    student = [*method.backbone.parameters(), *method.head.parameters()]
    teacher = list(method.teacher.parameters())
    assert all(torch.equal(t, s) for t, s in zip(teacher, student, strict=True))
    method.total_steps = 10
    progress = method.trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    for step, momentum in ((0, 0.6), (5, 0.8), (10, 1.0)):
        progress.completed = step
        assert method.trainer.global_step == step
        with torch.no_grad():
            for parameter in student:
                parameter.add_(torch.randn_like(parameter))
        before = [t.clone() for t in teacher]
        method.after_optimizer_step()
        for now, old, online in zip(teacher, before, student, strict=True):
            torch.testing.assert_close(now, momentum * old + (1 - momentum) * online.detach())


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(4, [0.04, 0.05, 0.06, 0.07, 0.07]), (2, [0.04, 0.07, 0.07]), (1, [0.04, 0.07]), (0, [0.07, 0.07])],
)
def test_the_teachers_temperature_rises_by_epoch(
    epochs: int, expected: list[float], tiny_config: Callable[..., Any]
) -> None:
    method, _ = prepared(tiny_config("dino", f"method.teacher_warmup_epochs={epochs}"))
    for epoch, temperature in enumerate(expected):
        at_epoch(method, epoch)
        assert method.teacher_temperature == pytest.approx(temperature)


def test_the_last_layer_is_frozen_in_the_first_epoch(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("dino"))
    start = method.head.weight.detach().clone()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 0.1, weight_decay=0.1)
    for epoch, number in ((0, 0), (0, 1), (1, 2)):
        at_epoch(method, epoch)
        optimizer.zero_grad()
        method.training_step(batch, number).backward()
        method.on_after_backward()
        hidden = method.head.mlp[0].weight.detach().clone()
        optimizer.step()
        assert not torch.equal(method.head.mlp[0].weight, hidden)
        assert torch.equal(method.head.weight, start) == (epoch == 0)


def test_a_collapsed_network_costs_the_logarithm_of_the_outputs(tiny_config: Callable[..., Any]) -> None:
    """All images alike and the centre where they are: uniform targets; a student equal on all outputs."""
    method, batch = prepared(tiny_config("dino"))
    with torch.no_grad():
        for network in (method.head, method.teacher.module[1]):
            network.weight.fill_(1.0)
    assert method.training_step(batch, 0).item() == pytest.approx(math.log(24), rel=1e-5)


def test_the_weight_decay_rises(tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from selfsup.methods import DINO

    seen: list[set[float]] = []
    after = DINO.after_optimizer_step

    def watch(self: Any) -> None:
        seen.append({group["weight_decay"] for group in self.trainer.optimizers[0].param_groups})
        after(self)

    monkeypatch.setattr(DINO, "after_optimizer_step", watch)
    train(tiny_config("dino"))
    decays = [0.4 - 0.36 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert len(seen) == 8
    for found, decay in zip(seen, decays, strict=True):
        assert sorted(found) == pytest.approx([0.0, decay])


def test_defaults_are_the_papers() -> None:
    config = load_config(["method=dino"])
    method = config.method
    assert (method.hidden_dim, method.bottleneck_dim, method.output_dim) == (2048, 256, 65536)
    assert (method.student_temperature, method.center_momentum, method.momentum) == (0.1, 0.9, 0.996)
    assert (config.augment.recipe, config.augment.counts) == ("dino", [2, 8])
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adamw", 5e-4, 0.04)
    assert optimizer.final_weight_decay == 0.4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.teacher_temperature=0", "method.teacher_temperature"),
        ("method.student_temperature=-1", "method.student_temperature"),
        ("augment.counts=[1,2]", "augment.counts"),
    ],
)
def test_mistakes_are_named(override: str, message: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message):
        tiny_method("dino", override)


def test_the_teacher_is_what_is_evaluated_and_loaded(tiny_config: Callable[..., Any]) -> None:
    run = train(tiny_config("dino", "method.momentum=0.5"))
    state = read_checkpoint(run)["state_dict"]
    loaded = load_backbone(run).state_dict()
    assert all(torch.equal(value, state[f"teacher.module.0.{key}"]) for key, value in loaded.items())
    assert not torch.equal(loaded["network.conv1.weight"], state["backbone.network.conv1.weight"])
