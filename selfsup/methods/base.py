"""What all methods share: the step around the loss, the optimiser, the schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import pytorch_lightning as pl
import torch
from torch import Tensor

from selfsup.augment import ViewGenerator
from selfsup.checkpoint import INFO
from selfsup.hashing import fold_in
from selfsup.nn import Backbone
from selfsup.optimization import OptimizerConfig, build_optimizer, decay_groups, scaled_lr, warmup_cosine
from selfsup.types import Batch, StepOutput, View


@dataclass
class MethodConfig:
    """Settings that every method has: its registered name. A method's own dataclass adds to it."""

    name: str = "???"


@dataclass
class Parts:
    """What a method is built from.

    Attributes:
        backbone: The network to train.
        views: Turns a batch into views on the training device.
        optimizer: Optimiser settings.
        batch_size: Images a step over all ranks.
        world_size: Number of ranks.
        seed: Seed of everything random in training.
    """

    backbone: Backbone
    views: ViewGenerator
    optimizer: OptimizerConfig
    batch_size: int
    world_size: int = 1
    seed: int = 0


class Method(pl.LightningModule, ABC):
    """A self-supervised method. A subclass writes ``__init__`` and ``step``.

    Everything random inside a step is keyed by (seed, epoch, batch, rank), never by the state of a generator. That is
    why a resumed run draws what the uninterrupted one would have drawn.
    """

    #: Whether BatchNorm statistics are shared over ranks when there are several on GPUs.
    sync_batchnorm = True

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.backbone = parts.backbone
        self.views = parts.views
        self.optimizer_config = parts.optimizer
        self.batch_size = parts.batch_size
        self.seed = parts.seed
        #: Goes into every checkpoint: what is needed to build the network, and the run, again.
        self.checkpoint_info: dict[str, Any] = {}
        self.finite: Tensor
        self.register_buffer("finite", torch.ones((), dtype=torch.bool), persistent=False)

    @abstractmethod
    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the loss of a batch, and scalars to log."""

    def after_optimizer_step(self) -> None:
        """Follow the weights that just moved (momentum encoders, prototypes)."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Return parameter groups; ``weight_decay`` in a group overrides the optimiser's."""
        return decay_groups(self, self.optimizer_config.weight_decay, self.optimizer_config.exclude_1d)

    @final
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Draw the views, take the method's step, log it."""
        epoch_seed = fold_in(self.seed, self.current_epoch)
        self._batch_seed = fold_in(epoch_seed, batch_idx)
        torch.manual_seed(fold_in(self._batch_seed, self.global_rank))  # dropout and the like
        unique_step = batch_idx * self.trainer.world_size + self.global_rank
        views = self.views(batch.image, seed=epoch_seed, index=batch.index, step=unique_step)
        output = self.step(views, batch)
        self.finite &= output.loss.detach().isfinite()
        self.log("train/loss", output.loss.detach(), prog_bar=True, sync_dist=False)
        for name, value in output.logs.items():
            self.log(f"train/{name}", value.detach())
        return output.loss

    @final
    def batch_permutation(self, local: int) -> Tensor:
        """Return a random order of the images of all ranks, ``local`` on each: the same on every rank."""
        generator = torch.Generator().manual_seed(self._batch_seed)
        return torch.randperm(local * self.trainer.world_size, generator=generator).to(self.device)

    @final
    def configure_optimizers(self) -> Any:
        """Build the optimiser and the per-step schedule."""
        config, trainer = self.optimizer_config, self.trainer
        optimizer = build_optimizer(
            self.param_groups(), config, scaled_lr(config, self.batch_size * trainer.accumulate_grad_batches)
        )
        total = int(trainer.estimated_stepping_batches)
        epochs = max(1, trainer.max_epochs or 1)
        warmup = min(round(config.warmup_epochs * total / epochs), total // 2)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, warmup, total, config.final_lr)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know."""
        done = self.trainer.current_epoch + int(self.trainer.is_last_batch)
        checkpoint[INFO] = {**self.checkpoint_info, "epochs_done": done}

    @final
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Move the weights, then what follows them."""
        super().optimizer_step(*args, **kwargs)
        self.after_optimizer_step()
