"""Lightning's trainer and data module, as a configuration asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from selfsup.config import TrainConfig
from selfsup.data import Splits, TrainLoader
from selfsup.data.loader import Share
from selfsup.data.resident import ResidentDataset, fits
from selfsup.data.workers import worker_count
from selfsup.engine.callbacks import (
    Checkpoints,
    OnlineEvaluation,
    Stopwatch,
    ViewsFigure,
)
from selfsup.engine.compilation import Compile
from selfsup.engine.devices import lightning
from selfsup.engine.finite import WatchNumbers
from selfsup.engine.loggers import build_loggers
from selfsup.engine.rates import Rates
from selfsup.engine.stop import StopSignal
from selfsup.errors import UserError


class TrainData(pl.LightningDataModule):
    """Tells the loader where in the training Lightning is, so that a resumed epoch goes on in its own order."""

    def __init__(self, splits: Splits, config: TrainConfig) -> None:
        super().__init__()
        self.dataset, self.config = splits.pretrain, config

    def loader(
        self,
        rank: int = 0,
        world_size: int = 1,
        position: Callable[[], tuple[int, int]] | None = None,
        processes: int = 1,
    ) -> TrainLoader:
        """Return the loader of one rank, of which there are ``processes`` on this machine."""
        config = self.config
        return TrainLoader(
            self.dataset,
            config.batch_size,
            config.seed,
            Share(rank, world_size),
            worker_count(config.data, processes),
            position,
            config.trainer.max_epochs,
        )

    def train_dataloader(self) -> TrainLoader:
        """Called by Lightning, which knows by then which rank this is, and on which device."""
        trainer = self.trainer
        assert trainer is not None
        device = trainer.strategy.root_device
        if (
            isinstance(self.dataset, ResidentDataset)
            and self.config.data.resident_on_device
            and fits(self.dataset, device)
        ):
            self.dataset = self.dataset.on(device)
        progress = trainer.fit_loop.epoch_loop.batch_progress
        return self.loader(
            trainer.global_rank,
            trainer.world_size,
            lambda: (trainer.current_epoch, progress.current.ready),
            trainer.num_devices,
        )


def build_trainer(
    config: TrainConfig,
    splits: Splits,
    run_dir: Path,
    resumed_step: int,
    stopwatch: Stopwatch,
    stop: StopSignal,
    further: Sequence[pl.Callback] = (),
) -> pl.Trainer:
    """Build the trainer of a run with its callbacks and loggers.

    Args:
        config, splits: Of the run.
        run_dir: Where callbacks and loggers write, once it trains.
        resumed_step: Step it goes on from; 0 for a run that starts.
        stopwatch, stop: Callbacks and signals that the caller goes on to ask.
        further: Callbacks that come before the run's own.

    Raises:
        UserError: Settings that Lightning refuses, or devices that are not there.
    """
    settings, online = config.trainer, config.online
    _check_followed(further, config)
    views = ViewsFigure(run_dir / "figures" / "views.png", splits.pretrain)
    callbacks: list[pl.Callback] = [*further, stopwatch, views, WatchNumbers(run_dir), Rates()]
    if settings.compile:
        callbacks.append(Compile())
    if online.every_epochs:
        callbacks.append(OnlineEvaluation(splits, online))
    # saving comes last: a checkpoint stands for an epoch whose evaluation found nothing wrong
    callbacks.append(Checkpoints(run_dir, settings, stop))
    return lightning(config, logger=build_loggers(config.logger, run_dir, resumed_step), callbacks=callbacks)


def _check_followed(callbacks: Sequence[pl.Callback], config: TrainConfig) -> None:
    """Make sure that what further callbacks follow is there whenever they look.

    Raises:
        UserError: ``online.every_epochs`` leaves out epochs in which one looks.
    """
    every = config.online.every_epochs
    for callback in callbacks:
        followed = str(getattr(callback, "monitor", None))
        if not followed.startswith(("online/", "health/")):
            continue
        looks = (callback.every_n_epochs or 0) if isinstance(callback, ModelCheckpoint) else 1
        if isinstance(callback, ModelCheckpoint | EarlyStopping) and (not every or looks % every):
            raise UserError(
                f"{type(callback).__name__} wants {followed} every {looks} epoch(s), and online.every_epochs={every} "
                f"looks at other times; set online.every_epochs={looks}."
            )
