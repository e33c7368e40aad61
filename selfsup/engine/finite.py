"""What a run does when its numbers stop being finite: it stops, says where, and keeps the step."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from torch import Tensor

from selfsup.distributed import any_rank, world
from selfsup.engine.capture import FILE, Capture, read_capture
from selfsup.engine.compilation import evaluating
from selfsup.engine.sharding import ShardedStrategy
from selfsup.engine.tracing import finite, gradients_of, trace
from selfsup.errors import UserError
from selfsup.methods import Method
from selfsup.nn import Prototypes
from selfsup.types import Batch

ADVICE = (
    "lower optimizer.lr, lengthen optimizer.warmup_epochs, set trainer.gradient_clip, or use trainer.precision=32-true"
)


def require_finite(module: Method) -> None:
    """Raise when a loss since the start was not finite."""
    if any_rank(not bool(module.finite), module.device):
        raise UserError(f"The loss is not finite (NaN or infinity): {ADVICE}; the last checkpoint is from before.")


class WatchNumbers(pl.Callback):
    """End the run when a loss or a gradient is not finite, before the weights have moved by it.

    On a CPU it looks at every step. Elsewhere looking waits for the device, so it looks at the steps of which a row is
    written; a run that goes on from before a captured step looks at all up to there. Several ranks look at losses only,
    together, and capture nothing: their loss is of them all.

    What a step changes by itself (buffers, prototypes) is copied before it, on the device; weights wait for its end.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._batch: tuple[Batch, int] | None = None
        self._changing: dict[str, Tensor] = {}
        self._copies: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Method)
        known = self.run_dir / FILE
        if module.reading_waits and known.is_file():
            module.look_until = read_capture(known).step + 1
        own = [id(part.weight) for part in module.modules() if isinstance(part, Prototypes)]
        kept = module.state_dict(keep_vars=True)
        self._changing = {
            name: value.detach()
            for name, value in kept.items()
            if not isinstance(value, torch.nn.Parameter) or id(value) in own
        }
        self._copies = [torch.empty_like(value) for value in self._changing.values()]

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if self._copies:
            torch._foreach_copy_(self._copies, list(self._changing.values()))
        self._batch = (batch, batch_idx)

    def on_after_backward(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Method)
        if not self._alone(trainer) or not module.looks:
            return
        what = "The loss"
        if bool(module.finite):
            if getattr(trainer.precision_plugin, "scaler", None) is not None:
                return  # it leaves out steps whose scaled gradients overflow, and lowers the scale
            gradients = gradients_of(module)
            if finite(list(gradients.values())):
                return
            what = f"The gradient of {next(name for name, value in gradients.items() if not finite([value]))}"
        self._stop(trainer, module, what)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, Method)
        self._batch = None  # its memory is the next one's
        if not self._alone(trainer) and (batch_idx + 1) % module.log_every_steps == 0:
            require_finite(module)

    def _alone(self, trainer: pl.Trainer) -> bool:
        return world() is None and not isinstance(trainer.strategy, ShardedStrategy)

    def _stop(self, trainer: pl.Trainer, module: Method, what: str) -> NoReturn:
        """Take the step again part by part, keep it in a file, and end the run.

        Raises:
            UserError: Always.
        """
        assert self._batch is not None
        assert module.last_loss is not None
        (batch, batch_idx), loss = self._batch, module.last_loss
        for parameter in module.parameters():
            parameter.grad = None
        self._restore()
        place = None
        # memory may be short, and the fault is to be told all the same
        with contextlib.suppress(RuntimeError), evaluating():
            place = trace(module, batch, batch_idx, trainer.precision_plugin.forward_context()).place
        self._restore()
        where = what.replace("The", "the", 1) if place is None else str(place)
        kept_batch: dict[str, Any] = {k: None if v is None else v.cpu().clone() for k, v in vars(batch).items()}
        captured = Capture(
            info=module.checkpoint_info,
            state={name: value.detach().cpu() for name, value in module.state_dict().items()},
            batch=Batch(**kept_batch),
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            batch_idx=batch_idx,
            total_steps=module.total_steps,
            threads=torch.get_num_threads(),
            device=module.device.type,
            loss=loss.cpu(),
            place=where,
        )
        named = shlex.quote(str(self.run_dir))
        last = self.run_dir / "checkpoints" / "last.ckpt"
        before = f"the last checkpoint, {last}, is from before" if last.exists() else "there is no checkpoint yet"
        try:
            captured.save(self.run_dir / FILE)
            kept = f"{self.run_dir / FILE} keeps the step: selfsup replay {named} takes it again."
        except UserError as error:
            kept = f"The step could not be kept: {error}"
        if module.reading_waits and place is not None and place.before and last.exists():
            kept += f" It began since the last look: selfsup train resume={named} looks at every step up to here."
        raise UserError(
            f"{what} is not finite (NaN or infinity) at step {trainer.global_step}, and the first place is {where}: "
            f"{ADVICE}; {before}. {kept}"
        )

    def _restore(self) -> None:
        with torch.no_grad():
            for value, copy in zip(self._changing.values(), self._copies, strict=True):
                value.copy_(copy)
