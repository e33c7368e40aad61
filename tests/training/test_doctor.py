"""The doctor names the phase that is slow, adds up to the step, and changes nothing that is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tiny import TINY, TINY_METHOD

import selfsup
from selfsup import diagnosis, phases
from selfsup.augment import ViewGenerator
from selfsup.checkpoint import read_checkpoint
from selfsup.cli import main
from selfsup.config import load_config
from selfsup.data import TrainLoader, load_splits
from selfsup.diagnosis import WARMUP, Report, doctor
from selfsup.engine.callbacks import OnlineEvaluation, WatchLoss
from selfsup.engine.loggers import MetricsCsv
from selfsup.engine.training import build_method, train
from selfsup.errors import UserError
from selfsup.methods import Method, MoCo, SimCLR
from selfsup.nn import Backbone, MomentumEncoder
from selfsup.optimization import build_optimizer
from selfsup.phases import PHASES, Clock, Step
from selfsup.registry import methods


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., tuple[Clock, Method, Any]]:
    """Take steps of a tiny configuration under the clock; return it, the trained method and what was seen between."""

    def run(method: str = "simclr", *overrides: str, steps: int = 3) -> tuple[Clock, Method, Any]:
        config = load_config([f"method={method}", *TINY_METHOD.get(method, []), *TINY, *overrides])
        pl.seed_everything(config.seed, verbose=False)
        visit = diagnosis._Visit(config, tmp_path)
        trained = build_method(visit.config, visit.splits)
        watcher = diagnosis._Look(Clock(visit.device), WARMUP + steps, visit.config, visit.splits)
        visit._fit(visit.config, visit.splits, trained, watcher)
        return watcher.clock, trained, watcher

    return run


class Time:
    """Stands in for the clock on the wall: it stands still but where a part of the step is made to take its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.patch = 0.0, monkeypatch
        for module in (phases, diagnosis):
            monkeypatch.setattr(module, "time", self)

    def perf_counter(self) -> float:
        return self.now

    def slow(self, owner: type, name: str, seconds: float) -> None:
        """Let every call of a method take some seconds."""
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds
            return original(*args, **kwargs)

        self.patch.setattr(owner, name, call)

    def slow_loader(self, seconds: float) -> None:
        original = TrainLoader.__iter__

        def iterate(loader: TrainLoader) -> Any:
            for batch in original(loader):
                self.now += seconds
                yield batch

        self.patch.setattr(TrainLoader, "__iter__", iterate)

    def slow_backward(self, method: type[Method], seconds: float) -> None:
        time, original = self, method.step

        class Nap(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Any) -> Any:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, gradient: Any) -> Any:
                time.now += seconds
                return gradient

        def step(method: Any, *args: Any) -> Any:
            output = original(method, *args)
            output.loss = Nap.apply(output.loss)
            return output

        self.patch.setattr(method, "step", step)

    def slow_optimizer(self, seconds: float) -> None:
        def nap(*_: Any) -> None:
            self.now += seconds

        def build(*args: Any, **kwargs: Any) -> torch.optim.Optimizer:
            optimizer = build_optimizer(*args, **kwargs)
            optimizer.register_step_pre_hook(nap)
            return optimizer

        self.patch.setattr("selfsup.methods.base.build_optimizer", build)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


def slow_everywhere(wall: Time) -> dict[str, float]:
    """Let every part of a step of MoCo take a time of its own, such that no two sums are equal."""
    wall.slow_loader(1)
    wall.slow(MoCo, "transfer_batch_to_device", 2)
    wall.slow(ViewGenerator, "forward", 4)
    wall.slow(Backbone, "forward", 8)  # of the query alone: the key encoder's network is called inside another
    wall.slow(MomentumEncoder, "forward", 16)
    wall.slow_backward(MoCo, 32)
    wall.slow(MoCo, "step", 64)
    wall.slow_optimizer(128)
    wall.slow(MoCo, "after_optimizer_step", 256)
    wall.slow(MetricsCsv, "log_metrics", 512)
    wall.slow(WatchLoss, "on_train_batch_end", 1024)
    wall.slow(MoCo, "on_before_zero_grad", 2048)
    return {
        "data wait": 1,
        "transfer": 2,
        "views": 4,
        "forward": 8,
        "momentum forward": 16 + 8,
        "backward": 32,
        "loss": 64,
        "optimiser": 128,
        "momentum update": 256,
        "logging": 512,
        "callbacks": 1024,
        "other": 2048,
    }


def test_every_moment_goes_to_its_phase(look: Any, wall: Time) -> None:
    expected = slow_everywhere(wall)
    assert set(expected) == set(PHASES)
    clock, _, _ = look("moco")
    for step in clock.steps[WARMUP:]:
        assert {name: seconds for name, seconds in step.phases.items() if seconds} == expected
        assert step.seconds == 4095 + 8


def test_a_network_that_gives_a_map_is_forward_too(look: Any, wall: Time) -> None:
    wall.slow(Backbone, "forward_dense", 1)
    clock, _, _ = look("pixpro")
    for step in clock.steps[WARMUP:]:  # two views each
        assert {name: seconds for name, seconds in step.phases.items() if seconds} == {
            "forward": 2,
            "momentum forward": 2,
        }


def test_a_step_is_all_its_accumulated_batches(look: Any, wall: Time) -> None:
    slow_everywhere(wall)
    clock, _, _ = look("moco", "trainer.accumulate=2", "data.train_size=200", steps=4)
    for step in diagnosis._countable(clock.steps[WARMUP:], 2):
        assert step.batches == 2
        assert step.phases["data wait"] == 2
        assert step.phases["backward"] == 64
        assert step.phases["optimiser"] == 128


def test_what_lies_between_steps_is_spread_over_them(look: Any, wall: Time) -> None:
    wall.slow(OnlineEvaluation, "look", 120)
    wall.slow(pl.Trainer, "save_checkpoint", 8)
    _, _, watcher = look("simclr", "online.every_epochs=3", "trainer.checkpoint_every_steps=16")
    extras = {extra.name: extra for extra in watcher.extras}
    assert extras["evaluation"].per_step == 120 / (3 * 4)  # four steps an epoch
    assert extras["checkpoint"].per_step == 8 / 4
    assert extras["checkpoint between"].per_step == 8 / 16


def test_limit_and_settings_are_measured(tmp_path: Path, wall: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes one second for each of views, network and a row of metrics: the limit is a third of it."""
    monkeypatch.setattr(diagnosis, "ROUNDS", 3)
    wall.slow(ViewGenerator, "forward", 1)
    wall.slow(Backbone, "forward", 1)
    wall.slow(MetricsCsv, "log_metrics", 1)
    found = doctor(load_config(TINY), steps=10, progress=False)
    assert found.plain_seconds == found.step_seconds == 3
    assert (found.limit_seconds, found.limit_share) == (1, 1 / 3)
    assert found.noise == 0
    trials = {trial.setting: trial for trial in found.trials}
    assert trials["trainer.log_every_steps=10"].gain == pytest.approx(0.5)  # two seconds in place of three
    assert trials["trainer.log_every_steps=10"].recommended
    assert trials["batch_size=32"].gain == pytest.approx(1)  # the same seconds for twice the images
    assert all(trial.gain == 0 and not trial.recommended for name, trial in trials.items() if "THREADS" in name)


def test_compiling_is_tried_when_asked_for_and_numbers_of_threads_then_are_not(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: original(f, dynamic=False, backend="aot_eager"))
    monkeypatch.setattr(diagnosis, "ROUNDS", 1)
    found = doctor(load_config(TINY), steps=1, progress=False, compile=True)
    assert "trainer.compile=true" in {trial.setting for trial in found.trials}
    assert not any("THREADS" in trial.setting for trial in found.trials)
    assert "trainer.compile=true" in dict(report.skipped)
    assert any("THREADS" in trial.setting for trial in report.trials)


@pytest.mark.parametrize("method", list(methods))
def test_every_method_can_be_looked_at(method: str, look: Any) -> None:
    clock, _, watcher = look(method, steps=2)
    steps = diagnosis._countable(clock.steps[WARMUP:], 1)
    seen = {phase.name for phase in diagnosis._phases(steps)}
    assert {"data wait", "transfer", "views", "forward", "loss", "backward", "optimiser", "logging"} <= seen
    assert {extra.name for extra in watcher.extras} >= {"evaluation", "checkpoint"}


def test_the_clock_changes_nothing_that_is_trained(look: Any, tmp_path: Path) -> None:
    """Steps under the clock leave the very weights and queue that the command leaves."""
    same = ["optimizer.schedule=constant", "trainer.max_epochs=1", "data.train_size=120"]
    _, method, _ = look("moco", *same, steps=3)
    config = load_config(["method=moco", *TINY_METHOD["moco"], *TINY, *same, f"run_dir={tmp_path / 'run'}"])
    assert len(load_splits(config.data).pretrain) // config.batch_size == WARMUP + 3  # one whole epoch
    saved = read_checkpoint(train(config))["state_dict"]
    state = method.state_dict()
    assert saved.keys() == state.keys()
    assert all(torch.equal(state[key], value) for key, value in saved.items())


def test_a_middle_epoch_is_looked_at(look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = []
    original = SimCLR.step

    def step(self: SimCLR, *args: Any) -> Any:
        epochs.append(self.current_epoch)
        return original(self, *args)

    monkeypatch.setattr(SimCLR, "step", step)
    look("simclr", "trainer.max_epochs=40", steps=2)
    assert epochs == [20] * 4 + [21]  # four steps an epoch


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(diagnosis, "ROUNDS", 2)
        found = doctor(load_config([*TINY, "trainer.log_every_steps=10"]), steps=2, progress=False)
        assert not list(folder.iterdir())
    return found


def test_the_report_is_consistent(report: Report) -> None:
    assert report.images == 16
    assert sum(phase.mean for phase in report.phases) == pytest.approx(report.step_seconds)
    assert [p.name for p in report.phases] == [name for name in PHASES if name in {p.name for p in report.phases}]
    assert 0 < report.limit_low <= report.limit_share <= report.limit_high
    assert report.memory_mb > 10
    assert report.rounds == 2
    tried = {trial.setting for trial in report.trials}
    assert "batch_size=32" in tried
    assert not tried & {name for name, _ in report.skipped}
    for trial in report.trials:
        assert trial.low <= trial.gain <= trial.high
        assert not trial.recommended or trial.gain > report.noise


def test_the_page_names_every_phase_and_setting(report: Report) -> None:
    lines = str(report).splitlines()
    tables = [line for line in lines if line.startswith("|")]
    for name in (*(phase.name for phase in report.phases), *(trial.setting for trial in report.trials)):
        assert any(line.split("|")[1].strip() == name for line in tables), name
    for start, line in enumerate(tables):
        if "---" in line:  # the columns of a table line up
            assert {len(row) for row in tables[start - 1 : start + 4]} == {len(line)}


def trial_of(seconds: list[float], plain: list[float], noise: float, images: int = 8) -> Any:
    variant = diagnosis._Variant("x=1", None, None, None, 1, seconds=seconds)  # type: ignore[arg-type]
    return diagnosis._trial(variant, variant, plain, 8, images, noise)


def test_a_gain_within_the_noise_is_not_recommended() -> None:
    plain = [1.0, 1.1, 0.9]
    assert trial_of([0.8, 0.88, 0.72], plain, 0.05).gain == pytest.approx(0.25)
    assert trial_of([0.8, 0.88, 0.72], plain, 0.05).recommended
    assert not trial_of([0.8, 0.88, 0.72], plain, 0.3).recommended
    assert not trial_of([0.8, 0.88, 0.95], plain, 0.05).recommended  # slower in one round
    assert trial_of([1.5, 1.65, 1.35], plain, 0.05, images=16).gain == pytest.approx(1 / 3)  # twice the images


def test_phases_that_take_nothing_are_not_worth_a_trial(report: Report) -> None:
    assert "trainer.log_every_steps=100" in {t.setting for t in report.trials} | {name for name, _ in report.skipped}
    for name, why in report.skipped:
        if name.startswith("trainer.log_every_steps"):
            assert "of a step" in why


def test_steps_of_accumulated_batches_and_starts_of_epochs_are_told_apart() -> None:
    def steps(*kinds: tuple[int, bool]) -> list[Step]:
        return [Step(batches, begins, {"loss": 1.0}) for batches, begins in kinds]

    rest = steps((2, True), (2, False), (1, False), (2, False))
    assert diagnosis._countable(rest, 2) == [rest[1], rest[3]]
    assert diagnosis._countable(steps((2, True), (2, True)), 2) == steps((2, True), (2, True))


@pytest.mark.parametrize(("log_every", "expected"), [(1, WARMUP), (10, 10), (22, 22), (23, WARMUP), (100, WARMUP)])
def test_the_first_row_of_metrics_is_part_of_the_warm_up(log_every: int, expected: int) -> None:
    assert diagnosis._warmup(20, log_every) == expected


def test_a_share_of_several_devices(tmp_path: Path) -> None:
    config = load_config([*TINY, "trainer.devices=2", "trainer.strategy=ddp", "batch_size=16"])
    visit = diagnosis._Visit(config, tmp_path)
    assert visit.world_size == 2
    assert visit._images(visit.config) == 8
    seen = []
    method = build_method(visit.config, visit.splits, 2)
    method.views.register_forward_hook(lambda module, args, views: seen.append(len(args[0])))
    visit._fit(visit.config, visit.splits, method, diagnosis._Lap(1, 2))
    assert set(seen) == {8}
    assert "One of 2 devices" in visit.notes[0]


MISTAKES = {
    "no steps": (["--steps", "0"], "--steps"),
    "steps in words": (["--steps=many"], "--steps"),
    "a run to resume": (["resume=runs/x"], "resume"),
    "unknown method": (["method=simclrr"], "Did you mean 'simclr'"),
    "misspelt key": (["trainer.max_epoch=3"], "Did you mean 'trainer.max_epochs=3'"),
    "batch larger than the data": ([*TINY, "batch_size=999"], "batch_size"),
    "queue smaller than a batch": (["method=moco", *TINY, "method.queue_size=8"], "method.queue_size"),
    "missing config": (["--config", "gone.yaml"], "gone.yaml"),
    "unknown option": (["--fast"], "--fast"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_sentence(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *arguments]) == 2
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_prints_and_writes(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(diagnosis, "doctor", lambda config, steps, compile: report if compile else None)
    assert main(["doctor", *TINY, "--compile", "--json", "found.json"]) == 0
    assert str(report) in capsys.readouterr().out
    values = json.loads((tmp_path / "found.json").read_text())
    assert values["limit_share"] == report.limit_share
    assert values["phases"][0]["name"] == "data wait"
    assert values["environment"]["versions"]["torch"]
    assert main(["doctor", *TINY, "--json", "found.json"]) == 2
    assert "found.json" in capsys.readouterr().err


def test_from_python() -> None:
    from selfsup.engine import training  # noqa: F401 - the name stays a function when the package's modules are loaded

    assert selfsup.doctor is doctor
    with pytest.raises(UserError, match="steps"):
        selfsup.doctor(load_config(TINY), steps=0)
