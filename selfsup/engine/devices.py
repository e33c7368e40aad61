"""The devices that a configuration asks for, as Lightning's trainer on them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import nn

from selfsup.checkpoint import AtomicCheckpointIO
from selfsup.config import TrainConfig
from selfsup.engine.sharding import ShardedStrategy
from selfsup.errors import UserError
from selfsup.registry import methods
from selfsup.shortage import lacks_memory

#: ``trainer.deterministic`` as Lightning takes it.
DETERMINISTIC: dict[str, bool | str] = {"off": False, "warn": "warn", "error": True}


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Train inside; afterwards torch chooses its operations as before.

    Raises:
        UserError: An operation has no deterministic form where ``trainer.deterministic=error`` asks for one.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        raise UserError(
            f"trainer.deterministic=error: {str(error).partition(' does not')[0]} has no deterministic form on this "
            "device; use trainer.deterministic=warn, which goes on with it and is not the same to the bit, or off."
        ) from error
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)


def lightning(config: TrainConfig, **more: Any) -> pl.Trainer:
    """Return Lightning's trainer for the devices, the precision and the length of a run.

    Args:
        config: The run.
        more: Further arguments of the trainer.

    Raises:
        UserError: Settings that Lightning refuses, or devices that are not there.
    """
    settings = config.trainer
    strategy: str | Strategy = settings.strategy
    if strategy == "fsdp":
        strategy = ShardedStrategy()
    elif settings.strategy.startswith("fsdp"):
        raise UserError(f"trainer.strategy={strategy} is not offered; use trainer.strategy=fsdp or ddp.")
    elif strategy == "ddp":
        # queues and prototypes are equal on all ranks by construction; sending them every step would be pure cost
        strategy = DDPStrategy(broadcast_buffers=False)
    shared = _share_batchnorm(config)
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
            deterministic=cast(Any, DETERMINISTIC[settings.deterministic]),
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            plugins=[AtomicCheckpointIO(), *([SharedBatchNorm(settings.batchnorm_ranks)] if shared else [])],
            **more,
        )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        if lacks_memory(error):
            raise
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    if trainer.precision.split("-")[0] != settings.precision.split("-")[0]:  # Lightning does it where a device cannot
        raise UserError(
            f"trainer.precision={settings.precision} is not for this device, which would train in {trainer.precision}; "
            f"choose trainer.precision={trainer.precision}, or another accelerator."
        )
    ranks = settings.batchnorm_ranks
    if shared and ranks is not None and trainer.world_size > ranks and trainer.world_size % ranks:
        raise UserError(
            f"trainer.batchnorm_ranks={ranks} does not divide the {trainer.world_size} ranks into groups of one size; "
            "choose a divisor of their number, or null to share BatchNorm statistics among all."
        )
    return trainer


class SharedBatchNorm(TorchSyncBatchNorm):
    """Lightning's SyncBatchNorm, with the statistics of groups of neighbouring ranks.

    Args:
        ranks: Ranks of a group; None is all of them.
    """

    def __init__(self, ranks: int | None) -> None:
        self.ranks = ranks

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace every BatchNorm by one that shares. Every rank must call it, once its process group is there."""
        if self.ranks == 1:
            return model
        everyone = self.ranks is None or self.ranks >= dist.get_world_size()
        group = None if everyone else dist.new_subgroups(self.ranks)[0]
        return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(model, group))  # type: ignore[no-untyped-call]


def _share_batchnorm(config: TrainConfig) -> bool:
    wanted = config.trainer.sync_batchnorm
    if wanted is None:
        return bool(methods[config.method.name].target.sync_batchnorm) and torch.cuda.device_count() > 1
    return wanted
