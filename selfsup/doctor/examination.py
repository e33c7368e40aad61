"""The examination: a few steps phase by phase, then the limit and the settings in turns."""

from __future__ import annotations

import gc
import math
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch

from selfsup.bars import progress_bar
from selfsup.config import TrainConfig
from selfsup.doctor.bench import Bench, Watcher
from selfsup.doctor.clock import PHASES, Clock, Step, seconds_of, watch
from selfsup.doctor.report import Extra, Phase, Report
from selfsup.doctor.turns import judge, take_turns, variants
from selfsup.engine.callbacks import OnlineEvaluation
from selfsup.engine.checks import check_settings
from selfsup.engine.environment import keep_memory, quieten, saves_memory
from selfsup.errors import UserError
from selfsup.methods import Method
from selfsup.types import size_words

WARMUP = 3  # fewest steps before the first that counts


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
    gc.collect()
    gc.freeze()  # memory is collected before every turn: half a second over all the modules that are loaded
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _examine(Bench(config, Path(folder)), steps, progress, compile)
    finally:
        gc.unfreeze()


def _examine(bench: Bench, steps: int, progress: bool, compiling: bool) -> Report:
    method = bench.build(bench.config, bench.splits)
    look = Look(bench, steps)
    with progress_bar(desc="doctor", unit="run", total=1, disable=not progress, leave=False) as bar:
        bench.train(bench.config, bench.splits, method, look)
        timed = look.timed
        whole = spread("sum", [step.seconds for step in timed])
        phases = phases_of(timed)
        tried, skipped = variants(bench, {phase.name: phase.mean / whole.mean for phase in phases}, compiling)
        steps_a_round = max(2, steps // 5)
        take_turns(bench, tried, steps_a_round, bar)
    present, again, limit, *others = tried
    for variant in tried[:3]:
        if not variant.seconds:
            raise UserError(f"The steps could not be taken: {variant.note}")
    pairs = list(zip(present.seconds, again.seconds, strict=True))
    plain = [math.sqrt(one * other) for one, other in pairs]
    reached = [at_best / now for at_best, now in zip(limit.seconds, plain, strict=True)]
    noise = max(max(pair) / min(pair) - 1 for pair in pairs)
    trials = [judge(variant, present, plain, noise) for variant in others if variant.seconds]
    return Report(
        title=_title(bench, method),
        images=present.images,
        phases=phases,
        steps=len(timed),
        step_seconds=whole.mean,
        step_median=statistics.median(step.seconds for step in timed),
        step_low=whole.low,
        step_high=whole.high,
        extras=look.extras,
        memory_mb=look.memory_mb,
        plain_seconds=statistics.median(plain),
        limit_seconds=statistics.median(limit.seconds),
        limit_share=statistics.median(reached),
        limit_low=min(reached),
        limit_high=max(reached),
        trial_memory_mb=present.memory_mb,
        noise=noise,
        trials=sorted(trials, key=lambda trial: -trial.gain),
        skipped=[*skipped, *((variant.name, variant.note) for variant in others if not variant.seconds)],
        rounds=len(pairs),
        steps_a_round=steps_a_round,
        notes=bench.notes,
    )


class Look(Watcher):
    """Times the phases of the steps, then once what lies between steps.

    Args:
        bench: Where they are taken.
        steps: Steps that count, after those that warm up.

    Attributes:
        extras: Evaluation, checkpoints and the start of an epoch.
    """

    def __init__(self, bench: Bench, steps: int) -> None:
        self.bench, self.extras, self.warmup = bench, list[Extra](), warmup(steps, bench.config.trainer.log_every_steps)
        super().__init__(Clock(bench.device), self.warmup + steps)

    @property
    def timed(self) -> list[Step]:
        """The steps that count."""
        return countable(self.clock.steps[self.warmup :], self.bench.config.trainer.accumulate)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Method)
        watch(trainer, module, self.clock)
        super().on_train_start(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Method)
        config, splits = self.bench.config, self.bench.splits
        settings, online = config.trainer, config.online
        epoch = max(1, len(splits.pretrain) // config.batch_size // settings.accumulate)
        evaluation, path = OnlineEvaluation(splits, online), self.bench.folder / "checkpoint.ckpt"
        evaluate = partial(evaluation.look, module)
        save = partial(trainer.save_checkpoint, path, weights_only=False)
        for name, work, every, setting in (
            ("evaluation", evaluate, online.every_epochs * epoch, "online.every_epochs"),
            ("checkpoint", save, settings.checkpoint_every_epochs * epoch, "trainer.checkpoint_every_epochs"),
            ("checkpoint between", save, settings.checkpoint_every_steps or 0, "trainer.checkpoint_every_steps"),
        ):
            if every:
                self.extras.append(Extra(name, seconds_of(work, self.bench.device), every, setting))
        later = self.clock.steps[1:]
        waits = [[s.phases["data wait"] for s in later if s.begins_epoch is begins] for begins in (True, False)]
        if all(waits):
            wait = max(0.0, statistics.fmean(waits[0]) - statistics.fmean(waits[1]))
            self.extras.append(Extra("first batch of an epoch", wait, epoch, "data.workers"))


def warmup(steps: int, log_every_steps: int) -> int:
    """Return the steps before the first that counts.

    They hold the first row of the metrics where one comes at all: it loads what writes rows, once.
    """
    return log_every_steps if WARMUP < log_every_steps < WARMUP + steps else WARMUP


def countable(steps: Sequence[Step], accumulate: int) -> list[Step]:
    """Return the steps that stand for all: whole, and not the first of an epoch where there are others."""
    within = [step for step in steps if step.batches == accumulate and not step.begins_epoch]
    return within or list(steps)


def phases_of(steps: Sequence[Step]) -> list[Phase]:
    """Return the phases that took time, in the order of a step."""
    found = [spread(name, [step.phases.get(name, 0.0) for step in steps]) for name in PHASES]
    return [phase for phase in found if phase.mean]


def spread(name: str, seconds: Sequence[float]) -> Phase:
    """Return the mean and the middle half of what the steps spent in a phase."""
    low, high = seconds[0], seconds[0]
    if len(seconds) > 1:
        low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Phase(name, statistics.fmean(seconds), low, high)


def _title(bench: Bench, method: Method) -> str:
    config, cuda = bench.config, bench.device.type == "cuda"
    weights = sum(p.numel() for p in method.backbone.parameters()) / 1e6
    where = torch.cuda.get_device_name(bench.device) if cuda else f"{bench.device.type}, {bench.threads} threads"
    return (
        f"{config.scheme} on {config.data.name} ({size_words(config.data.image_size)} px), "
        f"{config.backbone.name} with "
        f"{weights:.2f} M weights, batch {config.batch_size}, {config.trainer.precision}, {where}"
    )
