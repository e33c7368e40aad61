"""What can be known to go wrong before any data is read, or before a folder is made."""

from __future__ import annotations

import math
import operator
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from selfsup.config import TrainConfig
from selfsup.engine.callbacks import BEST
from selfsup.errors import UserError
from selfsup.methods import Method
from selfsup.registry import nearest

#: Least value of settings that have one; None, where a setting takes it, is always right.
LEAST = {
    "batch_size": 1,
    "seed": 0,
    "trainer.max_epochs": 1,
    "trainer.num_nodes": 1,
    "trainer.accumulate": 1,
    "trainer.chunk_size": 1,
    "trainer.log_every_steps": 1,
    "trainer.checkpoint_every_epochs": 1,
    "trainer.checkpoint_every_steps": 1,
    "trainer.keep_every_epochs": 1,
    "trainer.gradient_clip": 0,
    "data.workers": 0,
    "data.limit": 1,
    "data.image_size": 1,
    "data.resident_limit_mb": 0,
    "online.every_epochs": 0,
    "online.bank": 1,
    "online.queries": 0,
    "online.k": 1,
    "optimizer.reference_batch": 1,
    "optimizer.lr": 0,
    "optimizer.weight_decay": 0,
    "optimizer.final_weight_decay": 0,
    "optimizer.momentum": 0,
    "optimizer.warmup_epochs": 0,
    "optimizer.final_lr": 0,
}


def check_settings(config: TrainConfig) -> None:
    """Refuse numbers that make no sense.

    Raises:
        UserError: One of them is too small or not finite, or ``trainer.keep_best`` names no metric.
    """
    for key, least in LEAST.items():
        value = operator.attrgetter(key)(config)
        if value is not None and not (least <= value and math.isfinite(value)):
            raise UserError(f"{key} is {value}; set it to at least {least}.")
    if config.seed >= 2**32:
        raise UserError(f"seed is {config.seed}; set it to less than 2**32.")
    best, online = config.trainer.keep_best, config.online
    if best is not None and best not in BEST:
        raise UserError(f"trainer.keep_best: there is no '{best}' to go by.{nearest(best, BEST)}")
    if best is not None and not online.every_epochs:
        raise UserError(f"trainer.keep_best={best} needs the online evaluation; set online.every_epochs to 1 or more.")


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
    """Make sure that the checkpoints of a run find room, as far as can be told now.

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
    if done:
        count -= 1  # the last one is there
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
