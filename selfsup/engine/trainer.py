"""Lightning's trainer and data module, as a configuration asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.strategies import DDPStrategy, Strategy

from selfsup.checkpoint import AtomicCheckpointIO
from selfsup.config import TrainConfig
from selfsup.data import Splits, TrainLoader
from selfsup.data.resident import ResidentDataset, fits
from selfsup.data.workers import worker_count
from selfsup.engine.callbacks import (
    Checkpoints,
    OnlineEvaluation,
    StopSignal,
    Stopwatch,
    ViewsFigure,
    WatchLoss,
)
from selfsup.engine.compilation import Compile
from selfsup.engine.loggers import build_loggers
from selfsup.engine.sharding import ShardedStrategy
from selfsup.errors import UserError
from selfsup.registry import methods


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
            rank,
            world_size,
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
    callbacks: list[pl.Callback] = [*further, stopwatch, views, WatchLoss(settings.log_every_steps)]
    if settings.compile:
        callbacks.append(Compile())
    if settings.progress:
        # every refresh reads the loss, for which it has to wait for the device
        callbacks.append(TQDMProgressBar(refresh_rate=settings.log_every_steps))
    if online.every_epochs:
        callbacks.append(OnlineEvaluation(splits, online))
    # saving comes last: a checkpoint stands for an epoch whose evaluation found nothing wrong
    callbacks.append(Checkpoints(run_dir, settings, stop))
    strategy: str | Strategy = settings.strategy
    if strategy == "fsdp":
        strategy = ShardedStrategy()
    elif settings.strategy.startswith("fsdp"):
        raise UserError(f"trainer.strategy={strategy} is not offered; take trainer.strategy=fsdp, or ddp.")
    elif strategy == "ddp":
        # queues and prototypes are equal on all ranks by construction; sending them every step would be pure cost
        strategy = DDPStrategy(broadcast_buffers=False)
    try:
        trainer = pl.Trainer(
            max_epochs=settings.max_epochs,
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=strategy,
            precision=cast(Any, settings.precision),
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.gradient_clip,
            log_every_n_steps=settings.log_every_steps,
            enable_progress_bar=settings.progress,
            enable_model_summary=False,
            use_distributed_sampler=False,
            logger=build_loggers(config.logger, run_dir, resumed_step),
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            sync_batchnorm=_share_batchnorm(config),
        )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    if trainer.precision.split("-")[0] != settings.precision.split("-")[0]:  # Lightning does it where a device cannot
        raise UserError(
            f"trainer.precision={settings.precision} is not for this device, which would train in {trainer.precision}; "
            f"choose trainer.precision={trainer.precision}, or another accelerator."
        )
    return trainer


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


def _share_batchnorm(config: TrainConfig) -> bool:
    wanted = config.trainer.sync_batchnorm
    if wanted is None:
        return bool(methods[config.method.name].target.sync_batchnorm) and torch.cuda.device_count() > 1
    return wanted
