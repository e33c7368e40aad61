"""Steps of a training on one device, taken while a watcher looks on."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytorch_lightning as pl
import torch

from selfsup.config import TrainConfig
from selfsup.data import Splits, TrainLoader, load_splits
from selfsup.doctor.clock import Clock
from selfsup.engine.callbacks import Checkpoints, OnlineEvaluation, Stopwatch, ViewsFigure
from selfsup.engine.stop import StopSignal
from selfsup.engine.trainer import TrainData, build_trainer
from selfsup.engine.training import build_method
from selfsup.eval.results import peak_memory_mb
from selfsup.methods import Method
from selfsup.types import Batch

NEVER = 10**9


class Watcher(pl.Callback):
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
        _reset_peak(module.device)

    def has_enough(self) -> bool:
        """Whether all steps have been taken."""
        return self.clock.taken >= self.steps

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: object) -> None:
        if self.has_enough():
            self.memory_mb = _peak_mb(module.device)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.clock.end_step()
        if self.has_enough():
            trainer.should_stop = True


class WatchedData(TrainData):
    """The data of a training, whose batches are waited for under a clock and end when a watcher has seen enough."""

    def __init__(self, splits: Splits, config: TrainConfig, watcher: Watcher) -> None:
        super().__init__(splits, config)
        self.watcher = watcher

    def train_dataloader(self) -> WatchedLoader:  # type: ignore[override]
        """Called by Lightning."""
        return WatchedLoader(super().train_dataloader(), self.watcher)


class WatchedLoader:
    """The loader of :class:`WatchedData`. (Lightning's own ways to stop write a row of metrics, as no step would.)"""

    def __init__(self, loader: TrainLoader, watcher: Watcher) -> None:
        self.loader, self.watcher = loader, watcher

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        batches, clock, begins_epoch = iter(self.loader), self.watcher.clock, True
        while not self.watcher.has_enough():
            clock.begin_batch(begins_epoch)
            with clock.profile("data wait"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
            begins_epoch = False


class Bench:
    """A configuration as one device trains it, with its data.

    Attributes:
        folder: Where a training may write; what is there goes when the doctor does.
        config: For one device, and for no one to see.
        splits: Its data.
        world_size, device: Of the training that was asked for; the device is the first.
        threads: Threads of the CPU.
        notes: What is not in the steps that are taken here.

    Raises:
        UserError: As a training.
    """

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self.folder, self.splits, self.notes = folder, load_splits(config.data), list[str]()
        trainer = self._trainer(config, self.splits)
        self.world_size, self.device = trainer.world_size, trainer.strategy.root_device
        self.threads = torch.get_num_threads()
        self.check_batch(config, self.splits)
        self.config = config = copy.deepcopy(config)
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

    def _trainer(self, config: TrainConfig, splits: Splits) -> pl.Trainer:
        return build_trainer(config, splits, self.folder, 0, Stopwatch(self.folder / "times.csv"), StopSignal())

    def check_batch(self, config: TrainConfig, splits: Splits) -> None:
        """Raise where a batch does not fit the data."""
        TrainData(splits, config).loader(world_size=self.world_size)

    def images(self, config: TrainConfig) -> int:
        """Images that one device sees in a step."""
        return config.batch_size // self.world_size * config.trainer.accumulate

    def build(self, config: TrainConfig, splits: Splits) -> Method:
        """Return a method as a training begins with it."""
        return build_method(config, splits, self.world_size)

    def train(self, config: TrainConfig, splits: Splits, method: Method, watcher: Watcher) -> None:
        """Train as ``selfsup train`` does, from the middle epoch on, until the watcher has seen enough."""
        config = copy.deepcopy(config)
        config.batch_size //= self.world_size  # one device's share
        epoch = config.trainer.max_epochs // 2
        config.trainer.max_epochs = NEVER
        trainer = self._trainer(config, splits)
        apart = (ViewsFigure, OnlineEvaluation, Checkpoints)  # between steps; timed by themselves
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [watcher, *(c for c in callbacks if not isinstance(c, apart))]
        for count in ("ready", "started", "processed", "completed"):
            setattr(trainer.fit_loop.epoch_progress.current, count, epoch)
        with contextlib.redirect_stdout(io.StringIO()):  # what a run tells once, every turn would tell again
            trainer.fit(method, datamodule=WatchedData(splits, config, watcher))


def _reset_peak(device: torch.device) -> None:
    """Let the peak begin at what is in use now, as far as the system can."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")


def _peak_mb(device: torch.device) -> float:
    """Return the most that was in use since then, in MB (10⁶ bytes)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if sys.platform == "linux" and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found.group(1)) * 1024 / 1e6
    return peak_memory_mb()
