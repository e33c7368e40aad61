"""What may change when a run goes on changes for real and is told; what may not is refused before anything starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from selfsup.checkpoint import read_checkpoint
from selfsup.config import load_config
from selfsup.engine.resuming import Rule, changes, rule_of
from selfsup.engine.training import load_resumed_config, train
from selfsup.errors import UserError
from selfsup.optimization import OptimizerConfig, Schedule, build_optimizer, learning_rate_factors

ONE_EPOCH = ["trainer.max_epochs=1", "online.every_epochs=0"]


class Watch(pl.Callback):
    """Note the settings of the optimiser's groups as they are in every step."""

    def __init__(self) -> None:
        self.groups: list[list[dict[str, Any]]] = []

    def on_before_zero_grad(self, trainer: pl.Trainer, module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.groups.append([{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups])


def resume(run: Path, *overrides: str) -> list[list[dict[str, Any]]]:
    watch = Watch()
    train(load_resumed_config([f"resume={run}", *overrides]), [watch])
    return watch.groups


@pytest.mark.parametrize(
    ("optimizer", "overrides", "expected"),
    [
        ("sgd", ["optimizer.momentum=0.5", "optimizer.weight_decay=0.02"], {"momentum": 0.5, "weight_decay": 0.02}),
        ("lars", ["optimizer.momentum=0.8", "optimizer.weight_decay=0.3"], {"momentum": 0.8, "weight_decay": 0.3}),
        (
            "adamw",
            ["optimizer.kwargs.betas=[0.7,0.8]", "optimizer.weight_decay=0.5"],
            {"betas": (0.7, 0.8), "weight_decay": 0.5},
        ),
    ],
)
def test_a_resumed_run_trains_with_what_it_prints(
    optimizer: str,
    overrides: list[str],
    expected: dict[str, Any],
    tiny_config: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = train(tiny_config("simclr", f"optimizer={optimizer}", "optimizer.schedule=constant", *ONE_EPOCH))
    capsys.readouterr()
    new = ["optimizer.lr=0.003", "optimizer.scaling=none", "optimizer.warmup_epochs=0", *overrides]
    steps = resume(run, "trainer.max_epochs=2", *new)
    printed = capsys.readouterr().out
    assert len(steps) == 4
    for group in (group for groups in steps for group in groups):
        assert group["lr"] == 0.003
        for name, value in expected.items():
            wanted = 0.0 if name == "weight_decay" and not group["weight_decay"] else value
            read = tuple(group[name]) if isinstance(group[name], list | tuple) else group[name]
            assert read == wanted
    assert steps[0][0]["weight_decay"] == expected["weight_decay"]  # the weights' own group
    assert "learning rate 0.003" in printed
    assert "optimizer.lr was" in printed
    assert "now 0.003" in printed
    saved = read_checkpoint(run)
    assert saved["selfsup"]["config"]["optimizer"]["lr"] == 0.003
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == 0.003


def test_a_schedule_is_loaded_at_its_step_with_the_present_settings() -> None:
    def build(**settings: Any) -> tuple[torch.optim.Optimizer, Schedule]:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.ones(3, 2))
        config = OptimizerConfig(name="adamw", **settings)
        optimizer = build_optimizer([{"params": [weight], "lr_scale": 0.5}], config, config.lr)
        return optimizer, Schedule(optimizer, learning_rate_factors(config, 10, 10, optimizer))

    def step(optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        weight = optimizer.param_groups[0]["params"][0]
        weight.grad = weight.detach() + 1
        optimizer.step()
        schedule.step()

    first, schedule = build(lr=0.2, warmup_epochs=4)
    for _ in range(6):
        step(first, schedule)
    other, resumed = build(lr=0.02, warmup_epochs=4, weight_decay=0.7)
    other.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert other.param_groups[0]["lr"] == pytest.approx(first.param_groups[0]["lr"] / 10)
    assert other.param_groups[0]["weight_decay"] == 0.7
    # the weight itself comes from the checkpoint's weights, the moments from the state
    moments = [next(iter(o.state.values()))["exp_avg"] for o in (first, other)]
    assert torch.equal(*moments)
    step(first, schedule), step(other, resumed)
    assert other.param_groups[0]["lr"] == pytest.approx(first.param_groups[0]["lr"] / 10)


class Estimating(torch.optim.SGD):
    """Keeps an estimate in its groups, as Prodigy and schedule-free optimisers do."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)
        for group in self.param_groups:
            group["estimate"] = 0.0


def test_state_that_an_optimiser_keeps_in_its_groups_is_resumed() -> None:
    first, other = (Estimating([torch.nn.Parameter(torch.ones(3))], lr) for lr in (1.0, 0.5))
    Schedule(other, [lambda step: 1.0])
    first.param_groups[0]["estimate"] = 0.25
    other.load_state_dict(first.state_dict())
    assert other.param_groups[0]["estimate"] == 0.25
    assert other.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.name=adamw",
        "optimizer.exclude_1d=true",
        "optimizer.momentum=0",
        "backbone.width=8",
        "backbone.small_stem=false",
        "backbone.blocks=[1,1,1,2]",
        "data.image_size=16",
        "data.train_size=60",
        "data.holdout=0.2",
        "batch_size=8",
        "trainer.accumulate=2",
        "seed=1",
        "method.queue_size=64",
        "method.output_dim=16",
    ],
)
def test_what_makes_another_run_is_one_sentence_before_anything_starts(override: str, moco_run: Path) -> None:
    before = {path: path.read_bytes() for path in moco_run.rglob("*") if path.is_file()}
    key = override.partition("=")[0]
    with pytest.raises(UserError, match=f"{key} was ") as refused:
        resume(moco_run, "trainer.max_epochs=3", override)
    assert "\n" not in str(refused.value)
    assert before == {path: path.read_bytes() for path in moco_run.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def moco_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run of one epoch that no test may change."""
    from tiny import tiny

    folder = tmp_path_factory.mktemp("moco") / "run"
    return train(load_config([*tiny("moco"), *ONE_EPOCH, f"run_dir={folder}"]))


def test_the_configuration_stays_true_and_keeps_its_history(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(tiny_config("simclr", "optimizer.lr=0.01", *ONE_EPOCH))
    first = (run / "config.yaml").read_text()
    resume(run, "trainer.max_epochs=2", "optimizer.lr=0.002", "trainer.log_every_steps=2")
    with pytest.warns(UserWarning, match=r"Until step 4 \(1 epoch\) it had optimizer.lr=0.01"):
        again = load_config(file=run / "config.yaml")
    assert (again.optimizer.lr, again.trainer.max_epochs, again.resume) == (0.002, 2, None)
    assert again.run_dir == load_config(file=write(run.parent / "first.yaml", first)).run_dir
    (entry,) = json.loads((run / "changes.json").read_text())["changes"]
    assert (entry["step"], entry["epoch"]) == (4, 1)
    assert entry["settings"]["optimizer.lr"] == {"was": 0.01, "now": 0.002, "learns": True}
    assert entry["settings"]["trainer.log_every_steps"] == {"was": 1, "now": 2, "learns": False}
    # what was changed and then never trained leaves no trace
    monkeypatch.setattr(pl.Trainer, "fit", lambda *_, **__: (_ for _ in ()).throw(UserError("stopped")))
    for lr in ("0.5", "0.6"):
        with pytest.raises(UserError, match="stopped"):
            resume(run, "trainer.max_epochs=3", f"optimizer.lr={lr}")
    _, last = json.loads((run / "changes.json").read_text())["changes"]
    assert last["settings"]["optimizer.lr"] == {"was": 0.002, "now": 0.6, "learns": True}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_resume_without_changes_leaves_the_configuration_to_the_byte(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(tiny_config("simclr", *ONE_EPOCH))
    text = (run / "config.yaml").read_text()
    config = load_resumed_config([f"resume={run}"])
    assert changes(read_checkpoint(run)["selfsup"]["config"], config) == []
    monkeypatch.setattr("selfsup.engine.training.pl.Trainer.fit", lambda *_, **__: None)
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["selfsup"]["epochs_done"] = 0  # as one of the middle of the epoch
    torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
    train(config)
    assert (run / "config.yaml").read_text() == text
    assert not (run / "changes.json").exists()


def test_every_setting_has_a_rule_and_unknown_ones_stay() -> None:
    assert rule_of("optimizer.lr") is Rule.LEARNS
    assert rule_of("optimizer.kwargs.betas") is Rule.LEARNS
    assert rule_of("optimizer.name") is Rule.STAYS
    assert rule_of("trainer.devices") is Rule.RUNS
    assert rule_of("data.root") is Rule.RUNS
    assert rule_of("data.a_setting_of_tomorrow") is Rule.STAYS
    assert rule_of("batch_size") is Rule.STAYS
