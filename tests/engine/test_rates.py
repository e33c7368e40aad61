"""metrics.csv has learning rate, momentum and gradient norm of the steps; times.csv what differs between equal runs."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from selfsup.engine.callbacks import Stopwatch
from selfsup.engine.rates import Rates, gradient_norm
from selfsup.engine.training import train
from selfsup.methods import Method
from selfsup.optimization import cosine_schedule

Config = Callable[..., Any]


class Seen(pl.Callback):
    """Note what each optimiser step was taken with, in float64."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
        gradients = [p.grad.double() for p in module.parameters() if p.grad is not None]
        norm = sum(float((g * g).sum()) for g in gradients) ** 0.5
        self.steps.append({"lr": optimizer.param_groups[0]["lr"], "gradient_norm": norm})


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("settings", [[], ["trainer.accumulate=2", "trainer.gradient_clip=0.001"]])
def test_rows_hold_what_the_step_was_taken_with(settings: list[str], tiny_config: Config) -> None:
    seen = Seen()
    config = tiny_config("byol", "trainer.log_every_steps=2", *settings)
    run = train(config, [seen])
    found = [row for row in rows(run / "metrics.csv") if row["train/loss"]]
    total = len(seen.steps)
    assert [int(row["step"]) for row in found] == list(range(1, total, 2))
    for row in found:
        step = int(row["step"])
        assert float(row["lr"]) == seen.steps[step]["lr"]
        assert float(row["gradient_norm"]) == pytest.approx(seen.steps[step]["gradient_norm"], rel=1e-4)
    expected = [cosine_schedule(config.method.momentum, 1.0, int(row["step"]) / total) for row in found]
    assert [float(row["momentum"]) for row in found] == pytest.approx(expected, rel=1e-12)


def test_a_method_without_a_momentum_encoder_has_no_such_column(tiny_config: Config) -> None:
    run = train(tiny_config("simclr", "trainer.max_epochs=1"))
    assert {"lr", "gradient_norm"} <= rows(run / "metrics.csv")[0].keys()
    assert "momentum" not in rows(run / "metrics.csv")[0]


def test_the_norm_of_half_precision_gradients_is_of_float32() -> None:
    weights = [torch.nn.Parameter(torch.zeros(3000, dtype=torch.bfloat16)), torch.nn.Parameter(torch.zeros(2))]
    weights[0].grad, weights[1].grad = torch.ones(3000, dtype=torch.bfloat16), torch.full((2,), 3.0)
    before = [weight.grad.clone() for weight in weights if isinstance(weight.grad, Tensor)]
    assert float(gradient_norm(weights)) == pytest.approx(3018**0.5, rel=1e-6)
    assert all(torch.equal(a, b.grad) for a, b in zip(before, weights, strict=True) if b.grad is not None)
    assert float(gradient_norm([torch.nn.Parameter(torch.zeros(2))])) == 0


def test_the_norm_leaves_out_the_scale_of_fp16_that_a_fused_optimizer_takes_off_itself() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0]) * 1024
    logged: dict[str, float] = {}
    module = Mock(spec=Method, log_every_steps=1, log=lambda name, value: logged.update({name: float(value)}))
    trainer = Mock(global_step=0)
    trainer.precision_plugin.scaler.get_scale.return_value = 1024.0
    for takes, norm in ((True, 5.0), (False, 5120.0)):
        optimizer = torch.optim.SGD([weight], lr=0.1)
        optimizer._step_supports_amp_scaling = takes  # type: ignore[attr-defined]
        Rates().on_before_optimizer_step(trainer, module, optimizer)
        assert logged["gradient_norm"] == pytest.approx(norm)


def test_times_have_speed_and_memory_and_go_on_from_older_checkpoints(tiny_config: Config, tmp_path: Path) -> None:
    run = train(tiny_config())
    found = rows(run / "times.csv")
    assert [row["step"] for row in found] == ["3", "7"]
    assert all(float(row["images_per_second"]) > 0 and float(row["memory_mb"]) > 0 for row in found)
    watch = Stopwatch(tmp_path / "times.csv")
    watch.load_state_dict({"seconds": 3.0, "epochs": [(3, 2.5)]})
    assert watch.state_dict()["epochs"] == [(3, 2.5, None, None)]
    watch.load_state_dict({"seconds": 3.0})
    assert watch.state_dict()["epochs"] == []
