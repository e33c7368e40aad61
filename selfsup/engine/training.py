"""Training: from a configuration to a run folder."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import datetime
import itertools
import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import nn

from selfsup.augment import build_views
from selfsup.checkpoint import INFO, AtomicCheckpointIO, find_checkpoint, read_checkpoint, run_of
from selfsup.config import TrainConfig, TrainerConfig, from_values, to_yaml
from selfsup.data import Splits, TrainLoader, load_splits
from selfsup.data.resident import ResidentDataset, fits
from selfsup.data.workers import worker_count
from selfsup.engine.callbacks import MetricsCsv, OnlineEvaluation, SaveLast, Stopwatch, ViewsFigure, WatchLoss
from selfsup.engine.compilation import Compile
from selfsup.engine.sharding import ShardedStrategy, check_shardable
from selfsup.errors import UserError
from selfsup.eval import add_results
from selfsup.eval.figures import training_curves
from selfsup.eval.results import Record, peak_memory_mb
from selfsup.imports import record
from selfsup.methods import Method, Parts
from selfsup.nn import Backbone, build_backbone
from selfsup.optimization import build_optimizer, learning_rate_factors, scaled_lr
from selfsup.registry import methods


def train(config: TrainConfig, callbacks: Sequence[pl.Callback] = ()) -> Path:
    """Train a method and return the run folder.

    The folder receives ``config.yaml``, ``environment.json``, ``metrics.csv``, ``times.csv``, ``checkpoints/last.ckpt``
    and ``figures/``. With ``config.resume`` the run it names goes on in its own folder, and the result is bit for bit
    the one of a run that was never stopped.

    Args:
        config: The run.
        callbacks: Further ones of Lightning's, called before the run's own.

    Raises:
        UserError: A setting, a file or a folder is not as it must be. Nothing that existed is overwritten.
        Interrupted: Ctrl-C or SIGTERM; the run has left a checkpoint.
    """
    checkpoint = None if config.resume is None else find_checkpoint(config.resume)
    resumed_step = 0 if checkpoint is None else _check_resume(config, read_checkpoint(checkpoint))
    run_dir = _choose_run_dir(config) if checkpoint is None else run_of(checkpoint)
    pl.seed_everything(config.seed, verbose=False)
    _quieten()
    if not saves_memory(config.trainer):
        keep_memory()
    splits = load_splits(config.data)
    stopwatch = Stopwatch(run_dir / "times.csv")
    trainer = _build_trainer(config, splits, run_dir, resumed_step, stopwatch, callbacks)
    data = _Data(splits, config)
    data.loader(world_size=trainer.world_size)  # a batch that does not fit is found before a folder is made
    method = build_method(config, splits, trainer.world_size)
    if config.trainer.precision.startswith("64"):
        method.double()  # Lightning does it after it has read a checkpoint, which would be rounded
    if isinstance(trainer.strategy, ShardedStrategy):
        check_shardable(method, config)
    # mistakes in the optimiser's settings, too, are found before a folder is made; Lightning builds its own later
    optimizer = build_optimizer(method.param_groups(), config.optimizer, scaled_lr(config.optimizer, config.batch_size))
    learning_rate_factors(config.optimizer, 1, 1, optimizer)
    if trainer.is_global_zero:
        if checkpoint is None:
            _start_run_dir(run_dir, config, splits)
        _announce(config, splits, run_dir, method)
    trainer.fit(method, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero:
        add_results(run_dir, [_training_record(config, splits, stopwatch.seconds)])
        if (run_dir / "metrics.csv").exists():  # a short run may end before the first row
            training_curves(run_dir / "metrics.csv", run_dir / "figures" / "training.png")
    return run_dir


def build_method(config: TrainConfig, splits: Splits, world_size: int = 1) -> Method:
    """Build the method of a configuration with random weights.

    Raises:
        UserError: Settings that do not fit together.
    """
    data = splits.pretrain
    if len(config.data.mean) != data.channels or len(config.data.std) != data.channels:
        raise UserError(
            f"data.mean and data.std need {data.channels} values each, one for each channel of {data.name}."
        )
    backbone = build_backbone(config.backbone, data.channels, data.normalization)
    if _fills_vectors(backbone):
        backbone.to(memory_format=torch.channels_last)
    backbone.save_memory(config.trainer.chunk_size, config.trainer.activation_checkpointing)
    views = build_views(
        config.augment, config.data.image_size, data.normalization, len(data) * config.trainer.max_epochs
    )
    labelled = data.labels is not None
    parts = Parts(backbone, views, config.optimizer, config.batch_size, world_size, config.seed, labelled)
    method: Method = methods[config.method.name].target(config.method, parts)
    method.checkpoint_info = {
        "config": dataclasses.asdict(config),
        "in_channels": data.channels,
        "mean": list(data.normalization.mean),
        "std": list(data.normalization.std),
    }
    return method


def _fills_vectors(backbone: Backbone) -> bool:
    """Whether convolutions gain from having the channels innermost, on a CPU and on tensor cores.

    Below a vector's width they do not, and oneDNN's backward pass for such narrow layers has been seen to crash.
    """
    return all(m.out_channels % 16 == 0 for m in backbone.modules() if isinstance(m, nn.Conv2d))


class _Data(pl.LightningDataModule):
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


def _check_resume(config: TrainConfig, checkpoint: dict[str, Any]) -> int:
    """Return the step a checkpoint was written at; it must be of the same method and network."""
    saved = checkpoint[INFO]["config"]
    for name, now, then in (
        ("method", config.method.name, saved["method"]["name"]),
        ("backbone", config.backbone.name, saved["backbone"]["name"]),
        ("data", config.data.name, saved["data"]["name"]),
    ):
        if now != then:
            raise UserError(f"resume: the checkpoint has {name}={then}, not {now}; a run goes on as it began.")
    if int(checkpoint[INFO]["epochs_done"]) >= config.trainer.max_epochs:
        raise UserError(f"resume: this run has already trained its {config.trainer.max_epochs} epochs.")
    return int(checkpoint["global_step"])


def _build_trainer(
    config: TrainConfig,
    splits: Splits,
    run_dir: Path,
    resumed_step: int,
    stopwatch: Stopwatch,
    further: Sequence[pl.Callback] = (),
) -> pl.Trainer:
    settings, online = config.trainer, config.online
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
    callbacks.append(SaveLast(run_dir, settings.checkpoint_every_epochs, settings.checkpoint_every_steps))
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
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            logger=_loggers(config, run_dir, resumed_step),
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            sync_batchnorm=_share_batchnorm(config),
        )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    return trainer


def _share_batchnorm(config: TrainConfig) -> bool:
    wanted = config.trainer.sync_batchnorm
    if wanted is None:
        return bool(methods[config.method.name].target.sync_batchnorm) and torch.cuda.device_count() > 1
    return wanted


def _loggers(config: TrainConfig, run_dir: Path, resumed_step: int) -> list[Logger]:
    loggers: list[Logger] = [MetricsCsv(run_dir, resumed_step)]
    try:
        if config.logger.tensorboard:
            loggers.append(TensorBoardLogger(run_dir, name="", version="tensorboard"))
        if config.logger.wandb:
            loggers.append(
                WandbLogger(
                    name=run_dir.name,
                    save_dir=run_dir,
                    project=config.logger.wandb_project,
                    offline=config.logger.wandb_mode == "offline",
                    id=run_dir.name,
                )
            )
    except ModuleNotFoundError as error:
        raise UserError(
            f"logger: {error}; pip install 'selfsup[tensorboard,wandb]' brings what the loggers need."
        ) from error
    return loggers


def _choose_run_dir(config: TrainConfig) -> Path:
    if config.run_dir is not None:
        run_dir = Path(config.run_dir)
        if run_dir.exists() and is_first_process():
            raise UserError(
                f"run_dir: {run_dir} exists and is not overwritten; choose another, or go on with resume={run_dir}."
            )
        return run_dir
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{config.method.name}-{config.data.name}-seed{config.seed}-{stamp}"
    return next(
        path for n in itertools.count() if not (path := Path("runs") / (name + (f"-{n}" if n else ""))).exists()
    )


def is_first_process() -> bool:
    """Whether this is rank 0, which starts the others when it has already made the run folder."""
    return int(getattr(rank_zero_only, "rank", None) or 0) == 0


def _start_run_dir(run_dir: Path, config: TrainConfig, splits: Splits) -> None:
    about = _environment() | {"data": None if splits.found is None else splits.found.to_json()}
    try:
        (run_dir / "figures").mkdir(parents=True)
        (run_dir / "config.yaml").write_text(to_yaml(config), "utf-8")
        about["imports"] = record(run_dir)
        (run_dir / "environment.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise UserError(f"run_dir: {run_dir} cannot be written ({error}); choose another.") from error


def _environment() -> dict[str, Any]:
    packages = ("torch", "torchvision", "pytorch-lightning", "kornia", "timm", "faiss-gpu", "faiss-cpu", "numpy")
    versions = {}
    for name in ("selfsup", *packages):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "command": sys.argv,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": versions,
    }


def _training_record(config: TrainConfig, splits: Splits, seconds: float) -> Record:
    return {
        "protocol": "training",
        "split": "pretrain",
        "metric": "seconds",
        "value": round(seconds, 1),
        "data": config.data.name,
        "images": len(splits.pretrain),
        "epochs": config.trainer.max_epochs,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }


def _announce(config: TrainConfig, splits: Splits, run_dir: Path, method: Method) -> None:
    weights = sum(p.numel() for p in method.backbone.parameters())
    effective = config.batch_size * config.trainer.accumulate
    sizes = ", ".join(map(str, dict.fromkeys(method.views.sizes)))
    print(
        f"{config.method.name} on {len(splits.pretrain):,} images of {config.data.name} ({config.data.image_size} px), "
        f"{config.backbone.name} with {weights / 1e6:.2f} M weights, {config.trainer.max_epochs} epochs of "
        f"{len(splits.pretrain) // config.batch_size} steps, batch {config.batch_size}, "
        f"learning rate {scaled_lr(config.optimizer, effective):.4g} ({config.optimizer.name}), "
        f"{len(method.views.sizes)} {config.augment.recipe} views of {sizes} px"
        f"\nrun folder: {run_dir}",
        *(() if splits.found is None else splits.found.lines()),
        sep="\n",
        flush=True,
    )
    if config.trainer.accumulate > 1 and method.couples_images:
        print(
            f"note: trainer.accumulate={config.trainer.accumulate} adds up gradients of batches that never meet: "
            f"{config.method.name} compares the {config.batch_size} images of one batch only, so this adds no "
            f"negatives and nothing else to compare with; batch_size={effective} with trainer.chunk_size does.",
            flush=True,
        )
    queue_size = getattr(config.method, "queue_size", 0)
    if queue_size > len(splits.pretrain):
        print(
            f"note: method.queue_size={queue_size} is more than the {len(splits.pretrain)} training images, so the "
            "queue holds older keys of the very image a query shows; a smaller queue is better.",
            flush=True,
        )


def _quieten() -> None:
    """Silence what Lightning says about choices that are made here on purpose."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        ".*num_workers.*",
        ".*lr_scheduler.step.*",
        ".*GPU available.*",
        ".*LeafSpec.*",
        ".*isinstance.treespec.*",
        ".*broadcast_buffers.*",
        ".*transfer_batch_to_device.*",
        ".*smaller than the logging interval.*",  # rows are counted over epochs
    ):
        warnings.filterwarnings("ignore", message=message)


def saves_memory(settings: TrainerConfig) -> bool:
    """Whether memory comes before time."""
    return settings.chunk_size is not None or settings.activation_checkpointing


def keep_memory() -> None:
    """Let glibc keep the memory that a step frees for the next step, instead of asking the kernel for it anew.

    Activations are a few large tensors, which by default come from the kernel, page by page and zeroed, in every step.
    It holds for the rest of the process. The price is memory: what is kept has holes between tensors of many sizes.
    Elsewhere (GPU memory has torch's own cache; other C libraries) nothing happens.
    """
    mmap_threshold, trim_threshold, never = -3, -1, 2**31 - 1
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, never)


def load_resumed_config(overrides: Sequence[str]) -> TrainConfig:
    """Return the configuration of the run that ``resume=`` names, as it is kept in its checkpoint.

    Raises:
        UserError: As ``read_checkpoint``, or an override that changes what the run is.
    """
    resume = next(o.split("=", 1)[1] for o in overrides if o.startswith("resume="))
    saved = read_checkpoint(resume)[INFO]["config"]
    return cast(TrainConfig, from_values({**saved, "run_dir": None}, overrides))
