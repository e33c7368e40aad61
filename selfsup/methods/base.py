"""What all methods share: the step around the loss, the optimiser, the schedule."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from selfsup.checkpoint import INFO, stamp
from selfsup.distributed import world
from selfsup.errors import UserError
from selfsup.first_layer import TrAct
from selfsup.functional.arguments import trusted_values
from selfsup.functional.collectives import size_of
from selfsup.functional.masks import Draw
from selfsup.methods.needing import Needing
from selfsup.methods.parts import BuiltFromBackbone, Parts, as_batch
from selfsup.nn import Backbone, unchanged_statistics
from selfsup.optimization import (
    Schedule,
    build_optimizer,
    clip_gradients,
    cosine_schedule,
    decay_groups,
    learning_rate_factors,
    refined_groups,
    scaled_lr,
)
from selfsup.random import fold_in, seed_generators, uniform
from selfsup.settings import Section
from selfsup.types import Batch, StepOutput, View

# set the random numbers of methods apart from those of the views, and those of images from those of batches
_OF_IMAGES, _OF_BATCHES = 0x6D61736B, 0x62617463


@dataclass
class MethodConfig(Section):
    """Settings that every method has; a method's own dataclass adds to them.

    Attributes:
        name: The method, as registered.
    """

    section: ClassVar[str] = "method"
    #: Settings of the method's own loss, which do nothing where an objective takes its place.
    of_loss: ClassVar[tuple[str, ...]] = ()

    name: str = "???"


class Method(Needing, ABC, metaclass=BuiltFromBackbone):
    """A self-supervised method. A subclass writes ``__init__`` and ``step``.

    It trains under :func:`selfsup.train`, under any ``pl.Trainer`` with any loader of images, and in a loop of one's
    own, where calling it gives the loss::

        method = selfsup.methods.SimCLR(network, temperature=0.2, image_size=32)
        for images, _ in loader:
            optimizer.zero_grad()
            method(images).backward()
            optimizer.step()

    Built that way it takes the arguments of :func:`parts_of`.

    Everything random inside a step is keyed by (seed, epoch, batch, rank), never by the state of a generator. That is
    why a resumed run draws what the uninterrupted one would have drawn.

    Attributes:
        epoch: In a loop of one's own: the epoch, which the loop sets; views and some schedules depend on it. A trainer
            counts by itself.
        calls: Calls so far, there too, which schedules follow; a loop that goes on sets it.
        last_loss: Under a trainer: the loss of the last batch; reading it waits for the device.
        look_until: Under a trainer: optimiser steps in each of which numbers are looked at, on any device.
    """

    #: Whether BatchNorm statistics are shared over ranks when there are several on GPUs.
    sync_batchnorm = True
    #: Whether the loss of an image depends on the other images of the batch (negatives, correlations, balanced codes).
    couples_images = False
    #: Whether ``step`` reads where a view lies in its image (``View.to_source``).
    needs_geometry = False

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.take(parts)
        self.backbone = parts.backbone
        self.views = parts.views
        self.optimizer_config = parts.optimizer
        self.batch_size = parts.batch_size
        self.seed = parts.seed
        #: Optimiser steps of the whole training; Lightning knows when training starts.
        self.total_steps = parts.total_steps
        #: Steps between two that are logged; as above.
        self.log_every_steps = 1
        #: Goes into every checkpoint: what is needed to build the network, and the run, again.
        self.checkpoint_info: dict[str, Any] = {}
        self.last_loss: Tensor | None = None
        self.epoch = self.calls = self.look_until = 0
        self._frozen: list[nn.Parameter] = []
        self._tract: TrAct | None = None
        self.finite: Tensor
        self.register_buffer("finite", torch.ones((), dtype=torch.bool), persistent=False)

    @abstractmethod
    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the loss of a batch, and scalars to log."""

    def after_optimizer_step(self) -> None:
        """Follow the weights that just moved (momentum encoders, prototypes)."""

    @property
    def evaluated_backbone(self) -> Backbone:
        """The network that is judged while it trains and loaded from checkpoints: the trained one, or its average."""
        return self.backbone

    def param_groups(self) -> list[dict[str, Any]]:
        """Return parameter groups for the optimiser.

        A group may hold ``weight_decay`` in place of the optimiser's, ``lr_scale``, a factor on the learning rate,
        ``constant_lr``, which keeps it out of the schedule, and ``adapt``: false keeps LARS from scaling it.
        """
        return decay_groups(self, self.optimizer_config.weight_decay, self.optimizer_config.exclude_1d)

    @property
    def attached(self) -> bool:
        """Whether a trainer runs it; otherwise it is called in a loop of somebody's own."""
        return self._trainer is not None

    @property
    def current_epoch(self) -> int:
        """The epoch: the trainer's, or the one that a loop of one's own has set."""
        return self.trainer.current_epoch if self.attached else self.epoch

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.trainer.world_size if self.attached else size_of(world())

    @property
    def steps_done(self) -> int:
        """Optimiser steps before the present one."""
        return self.trainer.global_step if self.attached else max(0, self.calls - 1)

    @property
    def reading_waits(self) -> bool:
        """Whether reading a number waits for the device."""
        return self.device.type != "cpu"

    @property
    def looks(self) -> bool:
        """Whether this step's numbers are looked at: all where that is free, else those of logged rows."""
        if not self.attached or not self.reading_waits or self.steps_done < self.look_until:
            return True
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return (self.trainer.fit_loop.epoch_loop.batch_idx + 1) % every == 0 or self.trainer.is_last_batch

    @property
    def progress(self) -> float:
        """Fraction of the optimiser steps that are done, in [0, 1]: what schedules are functions of."""
        return min(1.0, self.steps_done / self.total_steps)

    def forward(
        self,
        images: Tensor | Sequence[View | Tensor],
        index: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of a batch, to be called once before every step of an optimiser of one's own.

        What follows the weights (momentum encoders, prototypes) does so at the start of the next call, which is the
        same sequence as after the step. What a schedule keeps frozen has no ``requires_grad`` for the time.

        Args:
            images: uint8, or float in [0, 1], ``[B,C,H,W]``, of which views are made; or the views, each a ``View`` or
                a normalised float ``[B,C,h,w]``.
            index: int64 ``[B]``, a stable number of each image; its views are a function of it, the seed and the
                epoch. None makes new ones in every call.
            label: int64 ``[B]``, for methods that need labels.

        Raises:
            UserError: Views of another number than the method takes, tensors where the place of a view is needed, or
                no labels, or no index, where they are.
        """
        if self.calls:
            self.after_optimizer_step()
        self.calls += 1
        first = images if isinstance(images, Tensor) else images[0]
        pixels = first.image if isinstance(first, View) else first
        if index is None:
            if self.needs_index:
                raise UserError(f"{type(self).__name__} keeps something of each image; give index=….")
            index = torch.arange(len(pixels)) + self.steps_done * len(pixels)
        batch = Batch(pixels, label, index)
        if self.needs_labels and label is None:
            raise UserError(f"{type(self).__name__} learns from labels; give label=….")
        if isinstance(images, Tensor):
            views = self.draw_views(batch, self.steps_done)
        else:
            self.seed_step(self.steps_done)
            views = self._as_views(images)
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = self.frozen()
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        loss = self.held_step(views, batch).loss
        self.on_before_backward(loss)
        return loss

    def _as_views(self, images: Sequence[View | Tensor]) -> tuple[View, ...]:
        if self.needs_geometry and not all(isinstance(view, View) for view in images):
            raise UserError(
                f"{type(self).__name__} needs to know where a view lies in its image: give views of "
                "selfsup.augment, or View(image, to_source)."
            )
        self.check_count(len(images))
        unknown = torch.full((1, 2, 3), float("nan"))
        views = (v if isinstance(v, View) else View(v, unknown.to(v.device).expand(len(v), -1, -1)) for v in images)
        return tuple(View(view.image.to(self.dtype), view.to_source) for view in views)

    def encode(self, views: Sequence[View]) -> Tensor:
        """Return the features ``[V,N,D]`` of views.

        Neighbouring views of one size go through the network in one pass and share BatchNorm statistics.
        """
        features = []
        for _, same in itertools.groupby(views, key=lambda view: view.image.shape[-2:]):
            images = [view.image for view in same]
            features.append(self.backbone(torch.cat(images)).unflatten(0, (len(images), -1)))
        return torch.cat(features)

    @final
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Draw the views, take the method's step, log it. The batch is a ``Batch``, or as :func:`as_batch` takes it."""
        if not isinstance(batch, Batch):
            batch = self._foreign(batch, batch_idx)
        with trusted_values():  # whether the loss is finite is looked at below, without waiting for the device
            output = self.held_step(self.draw_views(batch, batch_idx), batch)
        self.last_loss = output.loss.detach()
        self.finite &= self.last_loss.isfinite()
        # Lightning hands the loggers these steps' values and no others
        if (self.trainer.global_step + 1) % self.log_every_steps == 0:
            self.log("train/loss", self.last_loss, prog_bar=True, sync_dist=False)
            for name, value in output.logs.items():
                self.log(f"train/{name}", value.detach())
        return output.loss

    def _foreign(self, batch: Any, batch_idx: int) -> Batch:
        """Return the batch of a loader that is not ours."""
        number = batch_idx * self.world_size + self.global_rank
        found = as_batch(batch, None if self.needs_index else number)
        if self.needs_labels and found.label is None:
            raise UserError(f"{type(self).__name__} learns from labels; let the loader give (images, labels).")
        size = len(found.image) * self.world_size
        if batch_idx == 0 and self.current_epoch == 0 and size != self.batch_size:
            warnings.warn(
                f"{type(self).__name__} was built for batch_size={self.batch_size}, from which the learning rate "
                f"follows, and the loader gives {size} images a step; build it with batch_size={size}.",
                stacklevel=2,
            )
        return found

    @final
    def seed_step(self, batch_idx: int) -> int:
        """Begin a step: seed everything random in it, let the backbone rest or learn. Return the seed of the epoch."""
        self.rest(self.current_epoch)
        self._epoch_seed = epoch_seed = fold_in(self.seed, self.current_epoch)
        self._batch_seed = fold_in(epoch_seed, batch_idx)
        seed_generators(fold_in(self._batch_seed, self.global_rank), self.device)  # of dropout and the like
        return epoch_seed

    @final
    def draw_views(self, batch: Batch, batch_idx: int) -> tuple[View, ...]:
        """Seed everything random in a step and return the views of its batch."""
        epoch_seed = self.seed_step(batch_idx)
        unique_step = batch_idx * self.world_size + self.global_rank
        views = self.views(batch.image, seed=epoch_seed, index=batch.index, step=unique_step, size=batch.size)
        # made in float32; trainer.precision=64-true and bf16-true want the type of the weights
        return tuple(View(view.image.to(self.dtype), view.to_source) for view in views)

    @final
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Send images and labels off without waiting for their arrival; views are drawn here, by index and size."""
        if not isinstance(batch, Batch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        image, label = batch.image, batch.label
        if device.type == "cuda" and image.device.type == "cpu":
            image = image.pin_memory()  # from there alone is a copy asynchronous
        image = image.to(device, non_blocking=True)
        label = None if label is None else label.to(device, non_blocking=True)
        return Batch(image, label, batch.index, batch.size)

    @final
    def batch_permutation(self, local: int) -> Tensor:
        """Return a random order of the images of all ranks, ``local`` on each: the same on every rank, on the CPU."""
        return torch.randperm(local * self.world_size, generator=self.batch_generator())

    @final
    def batch_generator(self) -> torch.Generator:
        """Return a generator on the CPU that draws anew in every step, and the same on every rank."""
        return torch.Generator().manual_seed(self._batch_seed)

    def draw(self, index: Tensor, view: int) -> Draw:
        """Return the random numbers of the images in one view, keyed as the view is and independent of it."""
        return partial(uniform, fold_in(fold_in(self._epoch_seed, view), _OF_IMAGES), index.cpu())

    @final
    def draw_whole(self, local: int) -> Draw:
        """Return random numbers for the images of all ranks, ``local`` on each: every rank draws all, in rank order."""
        return partial(uniform, fold_in(self._batch_seed, _OF_BATCHES), torch.arange(local * self.world_size))

    @final
    def configure_optimizers(self) -> Any:
        """Build the optimiser and the per-step schedule."""
        config, trainer = self.optimizer_config, self.trainer
        if self._tract is not None:
            self._tract.remove()
        self._tract = None if config.tract is None else TrAct(self.backbone.network, config.tract)
        lr = scaled_lr(config, self.batch_size * trainer.accumulate_grad_batches)
        # Lightning cannot clip what a fused optimiser unscales by itself (trainer.precision=16-mixed)
        groups = refined_groups(self.param_groups(), self, self.backbone.network, config)
        optimizer = build_optimizer(groups, config, lr, fused=trainer.gradient_clip_val is None)
        self.total_steps = int(trainer.estimated_stepping_batches)
        self.log_every_steps = max(1, int(trainer.log_every_n_steps))  # type: ignore[attr-defined]
        factors = learning_rate_factors(config, self.total_steps, max(1, trainer.max_epochs or 1), optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": Schedule(optimizer, factors), "interval": "step"}}

    @final
    def on_fit_end(self) -> None:
        """Look at the first layer no more."""
        if self._tract is not None:
            self._tract.remove()

    @final
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Change the gradient of the first layer (``optimizer.tract``), before gradients are clipped."""
        if self._tract is not None:
            self._tract.precondition()

    @final
    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip gradients together, by module or by tensor."""
        if self.optimizer_config.clip_by == "all":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            clip_gradients(self, gradient_clip_val, self.optimizer_config.clip_by)

    @final
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backpropagate; what the backbone computes again meanwhile does not count in its running statistics."""
        again = self.backbone.recomputes
        with unchanged_statistics(self.backbone) if again else contextlib.nullcontext():
            super().backward(loss, *args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know."""
        done = self.trainer.current_epoch + int(self.trainer.is_last_batch)
        evaluated = next(name for name, module in self.named_modules() if module is self.evaluated_backbone)
        checkpoint[INFO] = {**stamp(), **self.checkpoint_info, "epochs_done": done, "backbone": evaluated}

    @final
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Move the weights, then what follows them."""
        config = self.optimizer_config
        if config.final_weight_decay is not None:
            decay = cosine_schedule(config.weight_decay, config.final_weight_decay, self.progress)
            for group in self.trainer.optimizers[0].param_groups:
                if group["weight_decay"]:  # what is exempt stays exempt
                    group["weight_decay"] = decay
        super().optimizer_step(*args, **kwargs)
        self.after_optimizer_step()
