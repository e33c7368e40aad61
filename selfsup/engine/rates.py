"""What ``metrics.csv`` has beside the loss: learning rate, momentum of the momentum encoder, norm of the gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from selfsup.distributed import world
from selfsup.methods import Method
from selfsup.nn import MomentumEncoder


class Rates(pl.Callback):
    """Add ``lr``, ``momentum`` and ``gradient_norm`` to the rows of ``metrics.csv``; other steps compute nothing.

    ``lr`` is that with which the step is taken, of the first parameter group. ``momentum`` is that with which the
    momentum encoder follows it, where a method has one. ``gradient_norm`` is of all weights together, before it is
    clipped, over all accumulated batches, ranks and parts of weights.
    """

    def __init__(self) -> None:
        self._row = False

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer) -> None:
        assert isinstance(module, Method)
        self._row = (trainer.global_step + 1) % module.log_every_steps == 0
        if not self._row:
            return
        module.log("lr", _exactly(optimizer.param_groups[0]["lr"]))
        norm = gradient_norm(parameter for group in optimizer.param_groups for parameter in group["params"])
        if getattr(optimizer, "_step_supports_amp_scaling", False):  # it divides by the scale of fp16 in its step
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            norm = norm if scaler is None else norm / scaler.get_scale()
        module.log("gradient_norm", norm)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._row:
            return
        self._row = False
        for part in module.modules():
            if isinstance(part, MomentumEncoder) and part.momentum is not None:
                module.log("momentum", _exactly(part.momentum))
                return


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Return the Euclidean norm of the gradients of all parameters together, in float32 or their own wider type.

    Gradients are read and not changed. Of sharded ones each rank has a part, and every rank must call it.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    parts = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    wide = [torch.float32 if part.dtype.itemsize < 4 else part.dtype for part in parts]
    norms = [torch.linalg.vector_norm(part, dtype=dtype) for part, dtype in zip(parts, wide, strict=True)]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    if not any(isinstance(g, DTensor) for g in gradients) or world() is None:
        return norm
    square = norm.square()
    dist.all_reduce(square, group=world())
    return square.sqrt()


def _exactly(value: float) -> Tensor:
    """Return a number as it is written: Lightning would round it to float32."""
    return torch.tensor(float(value), dtype=torch.float64)
