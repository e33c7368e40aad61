"""The doctor: where a training step's time goes, how near it comes to the limit, and which settings would help."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import gc
import io
import json
import math
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from tqdm import tqdm

from selfsup.config import TrainConfig, from_values
from selfsup.data import ResidentDataset, Splits, load_splits
from selfsup.data.workers import worker_count
from selfsup.engine.callbacks import Checkpoints, OnlineEvaluation, Stopwatch, ViewsFigure
from selfsup.engine.checks import check_settings
from selfsup.engine.environment import environment, keep_memory, quieten, saves_memory
from selfsup.engine.stop import StopSignal
from selfsup.engine.trainer import TrainData, build_trainer
from selfsup.engine.training import build_method
from selfsup.errors import UserError
from selfsup.eval.results import peak_memory_mb
from selfsup.methods import Method
from selfsup.phases import PHASES, Clock, Step, TimedLoader, synchronize, watch
from selfsup.types import View

WARMUP = 3  # fewest steps before the first that counts
ROUNDS = 5  # in each of which every setting is tried once
LEAST = 0.02  # share of a step that a setting must be able to touch to be tried
NEVER = 10**9
NETWORKS = ("forward", "momentum forward", "backward")


@dataclass(frozen=True)
class Phase:
    """Seconds a step spends in a phase: the mean, which adds up over phases, and the middle half of the steps."""

    name: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Extra:
    """Work between steps.

    Attributes:
        name: What it is.
        seconds: How long it takes once.
        every_steps: How often it comes.
        setting: The setting that makes it rarer.
    """

    name: str
    seconds: float
    every_steps: float
    setting: str

    @property
    def per_step(self) -> float:
        """Seconds, spread over the steps."""
        return self.seconds / self.every_steps


@dataclass(frozen=True)
class Trial:
    """What a setting did, measured in turns with the present settings.

    Attributes:
        setting: As it is written on the command line.
        images_per_second: Median of the rounds.
        gain: More images a second, as a fraction: the median over the rounds of the ratio within a round, less 1.
        low, high: The smallest and the largest such ratio, less 1.
        memory_mb: Peak memory, as ``Report.trial_memory_mb``.
        setup_seconds: What the first steps took beyond those of the present settings (compilation).
        recommended: Whether the gain was beyond the noise, and positive in every round.
        note: What else changes.
    """

    setting: str
    images_per_second: float
    gain: float
    low: float
    high: float
    memory_mb: float
    setup_seconds: float
    recommended: bool
    note: str


@dataclass(frozen=True)
class Report:
    """What the doctor found. ``str`` gives a page, ``dataclasses.asdict`` everything.

    Attributes:
        title: Method, data, network, batch, device.
        images: Images a step.
        phases: In the order of a step; their means add up to ``step_seconds``.
        steps: Steps that were timed by phases.
        step_seconds: Mean of these steps.
        step_median, step_low, step_high: Median and middle half of them.
        extras: Evaluation, checkpoints and the start of an epoch.
        memory_mb: Peak memory of these steps in MB (10⁶ bytes): of the tensors on a CUDA device, else of the process.
        plain_seconds: A step without the clock; median over the rounds.
        limit_seconds: The same, of forward, loss, backward and optimiser on precomputed views.
        limit_share, limit_low, limit_high: ``limit_seconds`` over ``plain_seconds`` round by round: median and range.
        trial_memory_mb: Peak memory of the rounds with the present settings.
        noise: Largest difference between two equal runs of a round, as a fraction.
        trials: Settings that were tried, the best first.
        skipped: Settings that were not, and why.
        rounds, steps_a_round: How each was tried.
        notes: What else to know.
    """

    title: str
    images: int
    phases: list[Phase]
    steps: int
    step_seconds: float
    step_median: float
    step_low: float
    step_high: float
    extras: list[Extra]
    memory_mb: float
    plain_seconds: float
    limit_seconds: float
    limit_share: float
    limit_low: float
    limit_high: float
    trial_memory_mb: float
    noise: float
    trials: list[Trial]
    skipped: list[tuple[str, str]]
    rounds: int
    steps_a_round: int
    notes: list[str]

    def __str__(self) -> str:
        return "\n".join(_page(self))

    def save(self, path: str | Path) -> None:
        """Write all numbers, and what they were measured on, as JSON."""
        values = {**dataclasses.asdict(self), "environment": environment()}
        Path(path).write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def doctor(config: TrainConfig, steps: int = 20, progress: bool = True, compile: bool = False) -> Report:
    """Run a few steps of a configuration; tell where they spend their time, and which settings would help.

    The steps are those of ``train``: its data, loader, method, trainer and callbacks, taken as in the middle of the
    training, when what begins late (a queue, the last layer) has begun. With several devices one device trains its
    share. Nothing is written.

    Args:
        config: As for ``train``; ``run_dir`` does not matter.
        steps: Steps that are timed by phases. A setting is tried for a fifth as many, in each of five rounds.
        progress: Show a progress bar.
        compile: Try ``trainer.compile`` too, which can take minutes; numbers of threads are then left alone.

    Raises:
        UserError: As ``train``; or no steps, or a run to resume.
    """
    if steps < 1:
        raise UserError(f"--steps={steps} leaves nothing to time; give at least 1, better 20.")
    if config.resume is not None:
        raise UserError("resume: the doctor looks at a configuration; give a run's by --config RUN/config.yaml.")
    check_settings(config)
    pl.seed_everything(config.seed, verbose=False)
    quieten()
    if not saves_memory(config.trainer):
        keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        return _Visit(config, Path(folder), compile).report(steps, progress)


@dataclass
class _Variant:
    """A configuration to time, and what was found.

    Attributes:
        name: Its settings, as on the command line.
        config, splits, method: What trains; the method is trained on from round to round.
        threads: Threads of the CPU.
        precomputed: Whether it is the limit.
        note: What else changes; or, without ``seconds``, why it could not be timed.
        ready: Whether it has warmed up.
        seconds: Of a step, round by round.
        memory_mb: As in ``Trial``.
        setup_seconds: What the first turn took beyond the time of its steps.
    """

    name: str
    config: TrainConfig
    splits: Splits
    method: Method
    threads: int
    precomputed: bool = False
    note: str = ""
    ready: bool = False
    seconds: list[float] = field(default_factory=list)
    memory_mb: float = 0.0
    setup_seconds: float = 0.0


@dataclass(frozen=True)
class _Candidate:
    """A setting that may be worth a trial.

    Attributes:
        name: As on the command line.
        touches: The phases that it can shorten; empty for what saves memory.
        threads: Threads of the CPU, where the setting is their number.
        resident: Whether the images come from memory.
        note: What else changes.
    """

    name: str
    touches: Sequence[str] = ()
    threads: int | None = None
    resident: bool = False
    note: str = ""


class _Visit:
    """The configuration, its data and the folder that lasts as long."""

    def __init__(self, config: TrainConfig, folder: Path, compiling: bool = False) -> None:
        self.folder, self.compiling, self.notes = folder, compiling, list[str]()
        self.splits = load_splits(config.data)
        trainer = build_trainer(config, self.splits, folder, 0, Stopwatch(folder / "times.csv"), StopSignal())
        self.world_size, self.device = trainer.world_size, trainer.strategy.root_device
        TrainData(self.splits, config).loader(world_size=self.world_size)  # a batch that does not fit is found here
        self.config = self._alone(config)
        self.threads = torch.get_num_threads()

    def _alone(self, config: TrainConfig) -> TrainConfig:
        """Return the configuration for one device, and for no one to see."""
        config = copy.deepcopy(config)
        config.run_dir = None
        config.trainer.progress = False
        if self.world_size > 1:
            config.trainer.devices, config.trainer.num_nodes, config.trainer.strategy = 1, 1, "auto"
            self.notes.append(
                f"One of {self.world_size} devices was timed, with its share of the batch; what devices send each "
                "other is not in here."
            )
        if config.logger.wandb:
            config.logger.wandb = False
            self.notes.append("Logging to W&B is not in here.")
        return config

    def report(self, steps: int, progress: bool) -> Report:
        """Time the phases, then the limit and the settings in turns."""
        method = build_method(self.config, self.splits, self.world_size)
        with tqdm(desc="doctor", unit="run", total=1, disable=not progress, leave=False) as bar:
            warmup = _warmup(steps, self.config.trainer.log_every_steps)
            look = _Look(Clock(self.device), warmup + steps, self.config, self.splits)
            self._fit(self.config, self.splits, method, look)
            bar.update()
            timed = _countable(look.clock.steps[warmup:], self.config.trainer.accumulate)
            seconds = [step.seconds for step in timed]
            phases = _phases(timed)
            shares = {phase.name: phase.mean / statistics.fmean(seconds) for phase in phases}
            variants, skipped = self._variants(shares)
            present, again, limit, *others = variants
            steps_a_round = max(2, steps // 5)
            bar.reset(1 + len(variants) * (ROUNDS + 1))
            bar.update()
            self._take_turns(variants, steps_a_round, bar)
        for variant in (present, again, limit):
            if not variant.seconds:
                raise UserError(f"The steps could not be taken: {variant.note}")
        pairs = list(zip(present.seconds, again.seconds, strict=True))
        plain = [math.sqrt(one * other) for one, other in pairs]
        shares_reached = [at_best / now for at_best, now in zip(limit.seconds, plain, strict=True)]
        noise = max(max(one, other) / min(one, other) - 1 for one, other in pairs)
        images = self._images(self.config)
        trials = [_trial(v, present, plain, images, self._images(v.config), noise) for v in others if v.seconds]
        low, high = _middle_half(seconds)
        return Report(
            title=self._title(method),
            images=images,
            phases=phases,
            steps=len(timed),
            step_seconds=statistics.fmean(seconds),
            step_median=statistics.median(seconds),
            step_low=low,
            step_high=high,
            extras=look.extras,
            memory_mb=look.memory_mb,
            plain_seconds=statistics.median(plain),
            limit_seconds=statistics.median(limit.seconds),
            limit_share=statistics.median(shares_reached),
            limit_low=min(shares_reached),
            limit_high=max(shares_reached),
            trial_memory_mb=present.memory_mb,
            noise=noise,
            trials=sorted(trials, key=lambda trial: -trial.gain),
            skipped=[*skipped, *((variant.name, variant.note) for variant in others if not variant.seconds)],
            rounds=len(pairs),
            steps_a_round=steps_a_round,
            notes=self.notes,
        )

    def _images(self, config: TrainConfig) -> int:
        """Images that one device sees in a step."""
        return config.batch_size // self.world_size * config.trainer.accumulate

    def _title(self, method: Method) -> str:
        config = self.config
        weights = sum(p.numel() for p in method.backbone.parameters()) / 1e6
        cuda = self.device.type == "cuda"
        where = torch.cuda.get_device_name(self.device) if cuda else f"{self.device.type}, {self.threads} threads"
        return (
            f"{config.method.name} on {config.data.name} ({config.data.image_size} px), {config.backbone.name} with "
            f"{weights:.2f} M weights, batch {config.batch_size}, {config.trainer.precision}, {where}"
        )

    def _fit(self, config: TrainConfig, splits: Splits, method: Method, watcher: _Watcher) -> None:
        """Train with the trainer of ``train`` until the watcher has seen enough."""
        config = copy.deepcopy(config)
        config.batch_size //= self.world_size  # one device's share
        epoch = config.trainer.max_epochs // 2
        config.trainer.max_epochs = NEVER
        trainer = build_trainer(config, splits, self.folder, 0, Stopwatch(self.folder / "times.csv"), StopSignal())
        apart = (ViewsFigure, OnlineEvaluation, Checkpoints)  # between steps; the watcher times them
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [watcher, *(c for c in callbacks if not isinstance(c, apart))]
        for count in ("ready", "started", "processed", "completed"):
            setattr(trainer.fit_loop.epoch_progress.current, count, epoch)
        with contextlib.redirect_stdout(io.StringIO()):  # what a run tells once, every turn would tell again
            trainer.fit(method, datamodule=_TimedData(splits, config, watcher))

    def _variants(self, shares: dict[str, float]) -> tuple[list[_Variant], list[tuple[str, str]]]:
        """Return what is timed in turns: the present settings twice, the limit, and the settings worth a trial."""
        present = _Variant("", self.config, self.splits, self._method(self.config, self.splits), self.threads)
        limit = dataclasses.replace(present, name="limit", precomputed=True, seconds=[])
        limit.method = self._method(self.config, self.splits)
        variants, skipped = [present, dataclasses.replace(present, seconds=[]), limit], []
        if not (self.compiling or self.config.trainer.compile):
            skipped.append(("trainer.compile=true", "compiling can take minutes; --compile tries it"))
        for candidate in _candidates(self.config, self.splits, self.device, self.compiling):
            share = sum(shares.get(phase, 0.0) for phase in candidate.touches)
            if candidate.touches and share < LEAST:
                names = " and ".join(candidate.touches)
                skipped.append((candidate.name, f"{names} take {100 * share:.1f} % of a step"))
                continue
            try:
                variants.append(self._variant(candidate))
            except UserError as error:
                skipped.append((candidate.name, str(error)))
        return variants, skipped

    def _variant(self, candidate: _Candidate) -> _Variant:
        config, splits, threads = self.config, self.splits, candidate.threads
        if candidate.resident:
            splits = dataclasses.replace(splits, pretrain=_in_memory(splits, 16 * config.batch_size))
        elif threads is None:
            config = from_values(dataclasses.asdict(config), [candidate.name])
            if config.data != self.config.data:
                splits = load_splits(config.data)
        TrainData(splits, config).loader(world_size=self.world_size)
        method = self._method(config, splits)
        return _Variant(candidate.name, config, splits, method, threads or self.threads, note=candidate.note)

    def _method(self, config: TrainConfig, splits: Splits) -> Method:
        return build_method(config, splits, self.world_size)

    def _take_turns(self, variants: list[_Variant], steps: int, bar: Any) -> None:
        """Time every variant in every round, each round from another one on; first each warms up, untimed."""
        for number in range(ROUNDS + 1):
            start = number % len(variants)
            for variant in variants[start:] + variants[:start]:
                bar.update()
                if number and not variant.ready:
                    continue
                try:
                    self._time(variant, steps)
                except (UserError, RuntimeError) as error:  # out of memory and what does not compile are RuntimeErrors
                    variant.ready, variant.note = False, " ".join(str(error).split())[:200]
                    variant.seconds.clear()

    def _time(self, variant: _Variant, steps: int) -> None:
        """Take one step that does not count, then some that do."""
        torch.set_num_threads(variant.threads)
        if not variant.splits.pretrain.resident:
            steps = max(steps, 4 * worker_count(variant.config.data))  # or batches that were fetched ahead hide a wait
        lap = (_Limit if variant.precomputed else _Lap)(1, steps)
        began = time.perf_counter()
        try:
            self._fit(variant.config, variant.splits, variant.method, lap)
        finally:
            torch.set_num_threads(self.threads)
        if not variant.ready:
            variant.ready, variant.setup_seconds = True, time.perf_counter() - began - (1 + steps) * lap.seconds
        else:
            variant.seconds.append(lap.seconds)
            variant.memory_mb = max(variant.memory_mb, lap.memory_mb)


class _TimedData(TrainData):
    """The data of a training, waited for under a clock."""

    def __init__(self, splits: Splits, config: TrainConfig, watcher: _Watcher) -> None:
        super().__init__(splits, config)
        self.watcher = watcher

    def train_dataloader(self) -> Any:
        """Called by Lightning."""
        return TimedLoader(super().train_dataloader(), self.watcher.clock, self.watcher.has_enough)


class _Watcher(pl.Callback):
    """Ends a training after some optimiser steps.

    Args:
        clock: Read by the loader.
        steps: Optimiser steps.
    """

    def __init__(self, clock: Clock, steps: int) -> None:
        self.clock, self.steps = clock, steps
        self.memory_mb = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self.clock.weights_moved)
        _reset_peak_memory(module.device)

    def has_enough(self) -> bool:
        """Whether all steps have been taken."""
        return self.clock.taken >= self.steps

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if self.has_enough():
            self.memory_mb = _peak_memory_mb(module.device)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.clock.end_step()
        if self.has_enough():
            trainer.should_stop = True


class _Look(_Watcher):
    """Times the phases of the steps, then once what lies between steps."""

    def __init__(self, clock: Clock, steps: int, config: TrainConfig, splits: Splits) -> None:
        super().__init__(clock, steps)
        self.config, self.splits = config, splits
        self.extras: list[Extra] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Method)
        watch(trainer, module, self.clock)
        super().on_train_start(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Method)
        settings, online = self.config.trainer, self.config.online
        epoch = max(1, len(self.splits.pretrain) // self.config.batch_size // settings.accumulate)
        if online.every_epochs:
            evaluation = OnlineEvaluation(self.splits, online)
            seconds = _seconds(lambda: evaluation.look(module), self.clock.device)
            self.extras.append(Extra("evaluation", seconds, online.every_epochs * epoch, "online.every_epochs"))
        path = Path(str(trainer.loggers[0].save_dir)) / "checkpoint.ckpt"
        seconds = _seconds(lambda: trainer.save_checkpoint(path, weights_only=False), self.clock.device)
        every = settings.checkpoint_every_epochs * epoch
        self.extras.append(Extra("checkpoint", seconds, every, "trainer.checkpoint_every_epochs"))
        if settings.checkpoint_every_steps:
            name = "trainer.checkpoint_every_steps"
            self.extras.append(Extra("checkpoint between", seconds, settings.checkpoint_every_steps, name))
        later = self.clock.steps[1:]
        waits = [[s.phases["data wait"] for s in later if s.begins_epoch is begins] for begins in (True, False)]
        if all(waits):
            wait = max(0.0, statistics.fmean(waits[0]) - statistics.fmean(waits[1]))
            self.extras.append(Extra("first batch of an epoch", wait, epoch, "data.workers"))


class _Lap(_Watcher):
    """Times some steps as a whole, after some that do not count. The device is waited for at both ends alone."""

    def __init__(self, skipped: int, steps: int) -> None:
        super().__init__(Clock(), skipped + steps)
        self.skipped = skipped
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """Mean seconds of a step."""
        return statistics.fmean(step.seconds for step in self.clock.steps[self.skipped :])

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if self.clock.taken in (self.skipped, self.steps):
            synchronize(module.device)
        super().on_train_batch_end(trainer, module)


class _Limit(_Lap):
    """Times forward, loss, backward and optimiser on views that are there already, with no loop around them."""

    @property
    def seconds(self) -> float:
        """Mean seconds of a step."""
        return self._seconds

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(module, Method)
        if self._seconds:
            return
        views, log = module.views, module.log
        with torch.no_grad():
            module.views = _Precomputed(views(batch.image, 0, batch.index))  # type: ignore[assignment]
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        optimizer = trainer.optimizers[0]

        def step() -> None:
            for number in range(trainer.accumulate_grad_batches):
                with trainer.precision_plugin.train_step_context():
                    loss = module.training_step(batch, batch_idx + number)
                module.backward(loss)
                module.on_after_backward()
            optimizer.step()
            optimizer.zero_grad()
            module.after_optimizer_step()

        for _ in range(self.skipped):
            step()
        steps = self.steps - self.skipped
        synchronize(module.device)
        start = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize(module.device)
        self._seconds = (time.perf_counter() - start) / steps
        module.views = views
        module.log = log  # type: ignore[method-assign]
        self.steps = 1  # the training itself need not go on


class _Precomputed(nn.Module):
    """Gives the same views whatever it is asked for."""

    def __init__(self, views: tuple[View, ...]) -> None:
        super().__init__()
        self.views = views

    def forward(self, images: Tensor, **_: Any) -> tuple[View, ...]:
        """Return the views."""
        return self.views


def _candidates(config: TrainConfig, splits: Splits, device: torch.device, compiling: bool) -> Iterator[_Candidate]:
    """Settings that can help this configuration on this machine."""
    data, images, cores = config.data, splits.pretrain, len(os.sched_getaffinity(0))
    if not images.resident:
        for workers in sorted({cores, 2 * cores} - {worker_count(data)}):
            yield _Candidate(f"data.workers={workers}", ("data wait",))
        megabytes = _size_mb(splits)
        note = f"images in memory: {megabytes} MB"
        yield _Candidate(f"data.resident_limit_mb={megabytes}", ("data wait",), resident=True, note=note)
    if compiling and not config.trainer.compile:
        yield _Candidate("trainer.compile=true", NETWORKS)
    # torch has aborted where compiled code met another number of threads
    if device.type == "cpu" and not (compiling or config.trainer.compile):
        for threads in sorted({1, cores // 2, cores} - {0, torch.get_num_threads()}):
            yield _Candidate(f"OMP_NUM_THREADS={threads}", ("views", *NETWORKS, "loss", "optimiser"), threads)
    if config.trainer.precision == "32-true" and _has_bfloat16(device):
        yield _Candidate("trainer.precision=bf16-mixed", NETWORKS, note="other rounding")
    offers = (
        ("trainer.activation_checkpointing", False, "true", (), "for memory"),
        ("trainer.chunk_size", None, str(max(2, config.batch_size // 4)), (), "for memory"),
    )
    for name, off, value, touches, note in offers:
        if _setting(config, name) == off:
            yield _Candidate(f"{name}={value}", touches, note=note)
    rare = 10 * config.trainer.log_every_steps
    yield _Candidate(f"trainer.log_every_steps={rare}", ("logging", "callbacks"), note="fewer rows in metrics.csv")
    yield _Candidate(f"batch_size={2 * config.batch_size}", PHASES, note="trains another way")


def _setting(config: TrainConfig, name: str) -> Any:
    """Return the value of ``group.name``; what does not exist equals nothing."""
    group, _, key = name.partition(".")
    return getattr(getattr(config, group), key, object())


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16; elsewhere it is emulated, many times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _size_mb(splits: Splits) -> int:
    """MiB of all images of a source in memory."""
    parts = [splits.pretrain, splits.holdout, *([splits.test] if splits.test is not None else [])]
    image = splits.pretrain.read_decodable(torch.zeros(1, dtype=torch.long))[0]
    return math.ceil(sum(map(len, parts)) * image.nbytes / 2**20) + 1


def _in_memory(splits: Splits, count: int) -> ResidentDataset:
    """Return the first training images as a source that keeps them in memory would hold them."""
    images = splits.pretrain
    positions = torch.arange(min(count, len(images)))
    return ResidentDataset(
        images.read_decodable(positions)[0],
        None if images.labels is None else images.labels[positions],
        images.facts,
    )


def _warmup(steps: int, log_every_steps: int) -> int:
    """Return the steps before the first that counts.

    They hold the first row of the metrics where one comes at all: it loads what writes rows, once.
    """
    return log_every_steps if WARMUP < log_every_steps < WARMUP + steps else WARMUP


def _countable(steps: Sequence[Step], accumulate: int) -> list[Step]:
    """Return the steps that stand for all: whole, and not the first of an epoch where there are others."""
    within = [step for step in steps if step.batches == accumulate and not step.begins_epoch]
    return within or list(steps)


def _phases(steps: Sequence[Step]) -> list[Phase]:
    phases = []
    for name in PHASES:
        seconds = [step.phases.get(name, 0.0) for step in steps]
        if any(seconds):
            phases.append(Phase(name, statistics.fmean(seconds), *_middle_half(seconds)))
    return phases


def _middle_half(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _trial(
    variant: _Variant, present: _Variant, plain: Sequence[float], images: int, own_images: int, noise: float
) -> Trial:
    ratios = [now / then * own_images / images - 1 for now, then in zip(plain, variant.seconds, strict=True)]
    gain = statistics.median(ratios)
    return Trial(
        setting=variant.name,
        images_per_second=own_images / statistics.median(variant.seconds),
        gain=gain,
        low=min(ratios),
        high=max(ratios),
        memory_mb=variant.memory_mb,
        setup_seconds=max(0.0, variant.setup_seconds - present.setup_seconds),
        recommended=gain > noise and min(ratios) > 0,
        note=variant.note,
    )


def _seconds(work: Callable[[], object], device: torch.device | None) -> float:
    """Return how long some work takes, the device's part included."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def _reset_peak_memory(device: torch.device) -> None:
    """Let the peak begin at what is in use now, as far as the system can."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if sys.platform == "linux" and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found.group(1)) * 1024 / 1e6
    return peak_memory_mb()


def _page(report: Report) -> Iterator[str]:
    """The report, on one screen."""
    step = report.step_seconds
    yield report.title
    yield (
        f"\nWhere a step goes: {report.steps} steps of {_ms(step)} ms on average (median {_ms(report.step_median)}, "
        f"middle half {_ms(report.step_low)} to {_ms(report.step_high)})\n"
    )
    rows = [["phase", "ms a step", "share", "middle half, ms"]]
    for phase in report.phases:
        spread = f"{_ms(phase.low)} to {_ms(phase.high)}"
        rows.append([phase.name, _ms(phase.mean), _percent(phase.mean / step), spread])
    rows.append(["sum", _ms(step), _percent(1), f"{_ms(report.step_low)} to {_ms(report.step_high)}"])
    for extra in report.extras:
        how = f"{extra.seconds:.3g} s every {extra.every_steps:,.0f} steps"
        rows.append([f"+ {extra.name}", _ms(extra.per_step), _percent(extra.per_step / step), how])
    yield _table(rows)
    yield (
        f"\nLimit: forward, loss, backward and optimiser alone, on views that are there already, take "
        f"{_ms(report.limit_seconds)} ms.\nA step without the clock takes {_ms(report.plain_seconds)} ms, "
        f"{report.images / report.plain_seconds:.4g} images/s: {_percent(report.limit_share)} of the limit is reached "
        f"({_percent(report.limit_low)} to {_percent(report.limit_high)})."
        f"\nPeak memory: {report.memory_mb:,.0f} MB."
    )
    yield (
        f"\nSettings tried in turns with the present ones, {report.rounds} rounds of {report.steps_a_round} steps. Two "
        f"equal runs of a round differed by up to {_percent(report.noise)}.\n"
    )
    rows = [["setting", "images/s", "gain", "range", "peak MB", "verdict"]]
    images = report.images / report.plain_seconds
    rows.append(["as it is", f"{images:.4g}", "", "", f"{report.trial_memory_mb:,.0f}", ""])
    for trial in report.trials:
        spread = f"{100 * trial.low:+.0f} to {100 * trial.high:+.0f} %"
        cells = [trial.setting, f"{trial.images_per_second:.4g}", f"{100 * trial.gain:+.1f} %", spread]
        rows.append([*cells, f"{trial.memory_mb:,.0f}", _verdict(trial, report)])
    yield _table(rows)
    for extra in report.extras:
        if extra.per_step / step >= LEAST:
            yield f"{extra.setting}: {extra.name} adds {_percent(extra.per_step / step)} to the time of the steps."
    if report.skipped:
        yield "\nNot tried: " + "; ".join(f"{name} ({why})" for name, why in report.skipped) + "."
    if report.notes:
        yield "\n" + "\n".join(report.notes)


def _verdict(trial: Trial, report: Report) -> str:
    if trial.recommended:
        word = "faster"
    elif trial.high < 0 and -trial.gain > report.noise:
        word = "slower"
    else:
        word = "no clear difference"
    saved = 1 - trial.memory_mb / report.trial_memory_mb if report.trial_memory_mb else 0.0
    words = [word, *([f"{_percent(saved)} less memory"] if saved > 0.1 else []), *([trial.note] if trial.note else [])]
    if trial.setup_seconds > 10 * report.plain_seconds and trial.setup_seconds > 5:
        words.append(f"starts {trial.setup_seconds:.0f} s later")
    return "; ".join(words)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if seconds < 1 else f"{1000 * seconds:.0f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %" if abs(fraction) < 0.0995 else f"{100 * fraction:.0f} %"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up: words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [
        all(cell[:1] in "+-" or cell[:1].isdigit() for cell in column[1:] if cell) for column in zip(*rows, strict=True)
    ]
    right[0] = False

    def line(cells: Sequence[str]) -> str:
        parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        return f"| {' | '.join(parts)} |"

    rule = [f"{'-' * (w - 1)}{':' if r else '-'}" for w, r in zip(widths, right, strict=True)]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])
