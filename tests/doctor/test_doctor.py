"""The doctor names the phase that is slow, adds up to the step, and changes nothing that is trained."""

from __future__ import annotations

import gc
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import pytorch_lightning as pl
import torch
from tiny import TINY, tiny

import selfsup
from selfsup.augment import ViewGenerator
from selfsup.checkpoint import read_checkpoint
from selfsup.cli import main
from selfsup.config import load_config
from selfsup.data import TrainLoader, load_splits
from selfsup.doctor import Report, clock, doctor, examination, turns
from selfsup.doctor.bench import Bench
from selfsup.doctor.clock import PHASES, Clock, Step
from selfsup.doctor.examination import WARMUP, Look, countable, phases_of, warmup
from selfsup.doctor.turns import Lap, Variant, judge, take_turns, variants
from selfsup.engine.callbacks import OnlineEvaluation
from selfsup.engine.finite import WatchNumbers
from selfsup.engine.loggers import MetricsCsv
from selfsup.engine.training import train
from selfsup.errors import UserError
from selfsup.methods import Method, MoCo, SimCLR
from selfsup.nn import Backbone, MomentumEncoder
from selfsup.optimization import build_optimizer
from selfsup.registry import methods


@pytest.fixture(autouse=True)
def small_heap() -> Iterator[None]:
    """Leave what earlier tests hold out of the collections before every turn, as the doctor does."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., tuple[Clock, Method, Look]]:
    """Take steps of a tiny configuration under the clock; return it, the trained method and what was seen between."""

    def run(method: str = "simclr", *overrides: str, steps: int = 1) -> tuple[Clock, Method, Look]:
        config = load_config([*tiny(method), *overrides])
        pl.seed_everything(config.seed, verbose=False)
        bench = Bench(config, tmp_path)
        trained, watcher = bench.build(bench.config, bench.splits), Look(bench, steps)
        bench.train(bench.config, bench.splits, trained, watcher)
        return watcher.clock, trained, watcher

    return run


class Time:
    """Stands in for the clock on the wall: it stands still but where a part of the step is made to take its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.patch = 0.0, monkeypatch
        monkeypatch.setattr(clock, "time", self)

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
    wall.slow(WatchNumbers, "on_train_batch_end", 1024)
    wall.slow(MoCo, "on_train_batch_end", 2048)
    wall.slow(MoCo, "configure_gradient_clipping", 1 << 12)
    wall.slow(MoCo, "optimizer_zero_grad", 1 << 13)
    wall.slow(MoCo, "lr_scheduler_step", 1 << 14)
    return {
        "data wait": 1,
        "transfer": 2,
        "views": 4,
        "forward": 8,
        "momentum forward": 16 + 8,
        "backward": 32,
        "loss": 64,
        "optimiser": 128 + (1 << 12) + (1 << 13) + (1 << 14),
        "momentum update": 256,
        "logging": 512,
        "callbacks": 1024,
        "other": 2048,
    }


def test_every_moment_goes_to_its_phase(look: Any, wall: Time) -> None:
    expected = slow_everywhere(wall)
    assert set(expected) == set(PHASES)
    _, _, watcher = look("moco", steps=2)
    for step in watcher.timed:
        assert {name: seconds for name, seconds in step.phases.items() if seconds} == expected
        assert step.seconds == (1 << 15) - 1 + 8


def test_a_network_that_gives_a_map_is_forward_too(look: Any, wall: Time) -> None:
    wall.slow(Backbone, "forward_dense", 1)
    _, _, watcher = look("pixpro")
    for step in watcher.timed:  # two views each
        assert {name: seconds for name, seconds in step.phases.items() if seconds} == {
            "forward": 2,
            "momentum forward": 2,
        }


def test_a_step_is_all_its_accumulated_batches(look: Any, wall: Time) -> None:
    expected = slow_everywhere(wall)
    _, _, watcher = look("moco", "trainer.accumulate=2", "data.train_size=200", steps=2)
    assert [step.batches for step in watcher.timed] == [2, 2]
    for step in watcher.timed:
        assert step.phases["data wait"] == 2
        assert step.phases["backward"] == 64
        assert step.phases["optimiser"] == expected["optimiser"]


def test_what_lies_between_steps_is_spread_over_them(look: Any, wall: Time) -> None:
    wall.slow(OnlineEvaluation, "look", 120)
    wall.slow(pl.Trainer, "save_checkpoint", 8)
    _, _, watcher = look("simclr", "online.every_epochs=3", "trainer.checkpoint_every_steps=16")
    extras = {extra.name: extra for extra in watcher.extras}
    assert extras["evaluation"].per_step == 120 / (3 * 4)  # four steps an epoch
    assert extras["checkpoint"].per_step == 8 / 4
    assert extras["checkpoint between"].per_step == 8 / 16


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A step takes one second for each of views, network and a row of metrics: the limit is a third of it."""
    folder = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(turns, "ROUNDS", 1)
        wall = Time(patch)
        wall.slow(ViewGenerator, "forward", 1)
        wall.slow(Backbone, "forward", 1)
        wall.slow(MetricsCsv, "log_metrics", 1)
        found = doctor(load_config(TINY), steps=4, progress=False)
        assert not list(folder.iterdir())
    return found


def test_limit_and_settings_are_measured(report: Report) -> None:
    assert report.plain_seconds == report.step_seconds == 3
    assert (report.limit_seconds, report.limit_share) == (1, 1 / 3)
    assert report.noise == 0
    trials = {trial.setting: trial for trial in report.trials}
    assert trials["trainer.log_every_steps=10"].gain == pytest.approx(0.5)  # two seconds in place of three
    assert trials["trainer.log_every_steps=10"].recommended
    assert trials["batch_size=32"].gain == pytest.approx(1)  # the same seconds for twice the images
    assert any("THREADS" in name for name in trials)
    assert all(trial.gain == 0 and not trial.recommended for name, trial in trials.items() if "THREADS" in name)


def names(tried: list[Variant]) -> str:
    return " ".join(variant.name for variant in tried)


def test_compiling_is_tried_when_asked_for_and_numbers_of_threads_then_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f, **_: compiled.append(f) or f)
    monkeypatch.setattr(turns, "ROUNDS", 1)
    bench = Bench(load_config(TINY), tmp_path)
    shares = dict.fromkeys(PHASES, 1.0)
    tried, skipped = variants(bench, shares, compiling=False)
    assert "THREADS" in names(tried)
    assert "trainer.compile=true" in dict(skipped)
    tried, skipped = variants(bench, shares, compiling=True)
    assert "THREADS" not in names(tried)
    (variant,) = [variant for variant in tried if variant.name == "trainer.compile=true"]
    take_turns(bench, [variant], 1, MagicMock())
    assert len(variant.seconds) == 1
    assert compiled


def test_what_takes_less_than_a_fiftieth_of_a_step_is_not_tried(tmp_path: Path) -> None:
    tried, skipped = variants(Bench(load_config(TINY), tmp_path), {"logging": 0.009, "callbacks": 0.01}, False)
    assert "log_every" not in names(tried)
    assert dict(skipped)["trainer.log_every_steps=10"] == "logging and callbacks take 1.9 % of a step"


def test_a_setting_that_fails_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(load_config(TINY), tmp_path)
    variant = variants(bench, {}, False)[0][0]
    monkeypatch.setattr(bench, "train", MagicMock(side_effect=RuntimeError("out of\nmemory")))
    take_turns(bench, [variant], 1, MagicMock())
    assert (variant.seconds, variant.note) == ([], "out of memory")


@pytest.mark.parametrize("method", list(methods))
def test_every_method_can_be_looked_at(method: str, look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "WARMUP", 1)
    _, _, watcher = look(method)
    seen = {phase.name for phase in phases_of(watcher.timed)}
    assert {"data wait", "transfer", "views", "forward", "loss", "backward", "optimiser", "logging"} <= seen
    assert {extra.name for extra in watcher.extras} >= {"evaluation", "checkpoint"}


def test_the_clock_changes_nothing_that_is_trained(look: Any, tmp_path: Path) -> None:
    """Steps under the clock leave the very weights and queue that the command leaves."""
    same = ["optimizer.schedule=constant", "trainer.max_epochs=1", "trainer.gradient_clip=0.1"]
    _, method, _ = look("moco", *same)
    config = load_config([*tiny("moco"), *same, f"run_dir={tmp_path / 'run'}"])
    assert len(load_splits(config.data).pretrain) // config.batch_size == WARMUP + 1  # one whole epoch
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


def test_the_report_is_consistent(report: Report) -> None:
    assert report.images == 16
    assert sum(phase.mean for phase in report.phases) == pytest.approx(report.step_seconds)
    assert [p.name for p in report.phases] == [name for name in PHASES if name in {p.name for p in report.phases}]
    assert 0 < report.limit_low <= report.limit_share <= report.limit_high
    assert report.memory_mb > 10
    assert report.rounds == 1
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
    now, then = (Variant("x=1", None, None, None, 1, count, seconds=seconds) for count in (8, images))
    return judge(then, now, plain, noise)


def test_a_gain_within_the_noise_is_not_recommended() -> None:
    plain = [1.0, 1.1, 0.9]
    assert trial_of([0.8, 0.88, 0.72], plain, 0.05).gain == pytest.approx(0.25)
    assert trial_of([0.8, 0.88, 0.72], plain, 0.05).recommended
    assert not trial_of([0.8, 0.88, 0.72], plain, 0.3).recommended
    assert not trial_of([0.8, 0.88, 0.95], plain, 0.05).recommended  # slower in one round
    assert trial_of([1.5, 1.65, 1.35], plain, 0.05, images=16).gain == pytest.approx(1 / 3)  # twice the images


def test_steps_of_accumulated_batches_and_starts_of_epochs_are_told_apart() -> None:
    def steps(*kinds: tuple[int, bool]) -> list[Step]:
        return [Step(batches, begins, {"loss": 1.0}) for batches, begins in kinds]

    rest = steps((2, True), (2, False), (1, False), (2, False))
    assert countable(rest, 2) == [rest[1], rest[3]]
    assert countable(steps((2, True), (2, True)), 2) == steps((2, True), (2, True))


@pytest.mark.parametrize(("log_every", "expected"), [(1, WARMUP), (10, 10), (22, 22), (23, WARMUP), (100, WARMUP)])
def test_the_first_row_of_metrics_is_part_of_the_warm_up(log_every: int, expected: int) -> None:
    assert warmup(20, log_every) == expected


def test_a_share_of_several_devices(tmp_path: Path) -> None:
    config = load_config([*TINY, "trainer.devices=2", "trainer.strategy=ddp", "batch_size=16"])
    bench = Bench(config, tmp_path)
    assert bench.world_size == 2
    assert bench.images(bench.config) == 8
    seen = []
    method = bench.build(bench.config, bench.splits)
    method.views.register_forward_hook(lambda module, args, views: seen.append(len(args[0])))
    bench.train(bench.config, bench.splits, method, Lap(1))
    assert set(seen) == {8}
    assert "One of 2 devices" in bench.notes[0]


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
    monkeypatch.setattr("selfsup.doctor.doctor", lambda config, steps, compile: report if compile else None)
    assert main(["doctor", *TINY, "--compile", "--json", "found.json"]) == 0
    assert str(report) in capsys.readouterr().out
    values = json.loads((tmp_path / "found.json").read_text())
    assert values["limit_share"] == report.limit_share
    assert [phase["name"] for phase in values["phases"]] == ["views", "forward", "logging"]
    assert values["environment"]["versions"]["torch"]
    assert main(["doctor", *TINY, "--json", "found.json"]) == 2
    assert "found.json" in capsys.readouterr().err


def test_from_python() -> None:
    assert inspect.signature(selfsup.doctor) == inspect.signature(doctor)
    with pytest.raises(UserError, match="steps"):
        selfsup.doctor(load_config(TINY), steps=0)
