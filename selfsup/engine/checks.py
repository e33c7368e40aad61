"""What can be known to go wrong before any data is read, or before a folder is made."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from selfsup.augment import build_views
from selfsup.config import TrainConfig
from selfsup.engine.callbacks import BEST
from selfsup.engine.devices import lightning
from selfsup.engine.held import check_held, hold
from selfsup.errors import UserError
from selfsup.methods import Method
from selfsup.nn import build_backbone, side_step
from selfsup.registry import nearest
from selfsup.settings import check
from selfsup.types import Normalization, as_size


def check_settings(config: TrainConfig) -> None:
    """Refuse values that make no sense, also where code has set them after the configuration was made.

    Raises:
        UserError: One is out of its range, or ``trainer.keep_best`` names no metric.
    """
    check(config)
    best, online = config.trainer.keep_best, config.online
    if best is not None and best not in BEST:
        raise UserError(f"trainer.keep_best: there is no '{best}' to go by.{nearest(best, BEST)}")
    if best is not None and not online.every_epochs:
        raise UserError(f"trainer.keep_best={best} needs the online evaluation; set online.every_epochs to 1 or more.")


def check_before_data(config: TrainConfig) -> None:
    """Find what is wrong with devices, network and sizes while no image has been read. Nothing random is drawn.

    Raises:
        UserError: A device that is not there, a network that there is not or that does not take images of these sizes,
            or a batch larger than ``data.limit``.
    """
    lightning(config, logger=False, enable_checkpointing=False)
    check_held(config)
    data, backbone = config.data, config.backbone
    if data.limit is not None and config.batch_size > data.limit:
        raise UserError(
            f"batch_size is {config.batch_size} but data.limit leaves only {data.limit} training images; lower "
            "batch_size or raise data.limit."
        )
    channels, statistics = len(data.mean), Normalization(tuple(data.mean), tuple(data.std))
    step = side_step(backbone, channels)
    views = build_views(config.augment, data.image_size, statistics, config.trainer.max_epochs, step)
    with torch.device("meta"):  # without memory for its weights
        hold(build_backbone(backbone, channels, statistics, [*views.sizes, as_size(data.image_size)]), backbone)


def check_batch(config: TrainConfig, method: Method, world_size: int) -> None:
    """Refuse a batch that leaves a process one image where the method needs more.

    Raises:
        UserError: It does.
    """
    if config.batch_size // world_size > 1:
        return
    flat = any(isinstance(module, nn.BatchNorm1d) for module in method.modules())
    if (method.couples_images and config.batch_size == 1) or flat:
        reason = "has BatchNorm in its heads" if flat else "compares the images of a batch"
        raise UserError(
            f"batch_size is {config.batch_size}, one image for each process, and {config.method.name} {reason}; set it "
            f"to at least {2 * world_size}."
        )


def check_disk(run_dir: Path, config: TrainConfig, method: Method, optimizer: torch.optim.Optimizer, done: int) -> None:
    """Make sure that the checkpoints of a run find room, as far as is known now.

    Args:
        run_dir, config: Of the run.
        method, optimizer: What a checkpoint holds.
        done: Epochs that are trained already.

    Raises:
        UserError: The disk has less room than they will take.
    """
    settings = config.trainer
    weights = sum(_bytes(group["params"]) for group in optimizer.param_groups)
    moments = 2 if any("betas" in group or "beta2" in group for group in optimizer.param_groups) else 1
    size = _bytes(method.state_dict().values()) + moments * weights
    # the last one and its successor, while that is written
    count = 2 + (settings.keep_best is not None)
    if settings.keep_every_epochs:
        count += settings.max_epochs // settings.keep_every_epochs - done // settings.keep_every_epochs
    count += 1 if config.backbone.from_ is not None else 0  # the weights it started from
    if done:
        count -= 1 if config.backbone.from_ is None else 2  # the last one is there, and those
    folder = next(path for path in (run_dir, *run_dir.resolve().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if count * size > free:
        raise UserError(
            f"run_dir: {run_dir} takes {count * size / 1e9:.2g} GB, {count} checkpoints of {size / 1e9:.2g} GB, and "
            f"its disk has {free / 1e9:.2g} GB left; make room, choose another run_dir, or keep fewer "
            "(trainer.keep_every_epochs)."
        )


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
