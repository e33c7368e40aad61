"""Taking a captured step again, on the CPU."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from selfsup.config import TrainConfig, from_values
from selfsup.engine.capture import Capture, find_capture, read_capture
from selfsup.engine.devices import lightning
from selfsup.engine.environment import quieten
from selfsup.engine.tracing import Trace, trace
from selfsup.engine.training import assemble
from selfsup.errors import UserError, reason_of
from selfsup.methods import Method
from selfsup.shortage import lacks_memory
from selfsup.tables import console_table
from selfsup.types import ImageFacts, Normalization

#: Parts that are shown before the place.
SHOWN = 12


@dataclass(frozen=True)
class Replay:
    """A step that was taken again.

    Attributes:
        captured: The step.
        trace: What came of it here.
    """

    captured: Capture
    trace: Trace

    @property
    def same(self) -> bool:
        """Whether the loss is that of the run, bit for bit; of two NaN the signs do not count."""
        here, there = self.trace.loss, self.captured.loss
        return here.dtype == there.dtype and bool(torch.equal(here, there) or (here.isnan() & there.isnan()))

    def __str__(self) -> str:
        step, seen, place = self.captured, self.trace.seen, self.trace.place
        end = len(seen) if place is None else next(n for n, one in enumerate(seen) if one is place) + 1
        begin = max(0, end - SHOWN)
        index = step.batch.index.tolist()
        images = ", ".join(map(str, index[:8])) + (f" and {len(index) - 8} more" if len(index) > 8 else "")
        rows = [
            [one.what, f"{one.largest:.3g}", f"{one.bad:,} of {one.count:,}" if one.bad else "all finite"]
            for one in seen[begin:end]
        ]
        name = step.info["config"]["method"]["name"]
        same = "as in the run" + ("" if self.captured.loss.isnan() else ", bit for bit")
        loss = same if self.same else f"in the run {float(step.loss):.9g}, on {step.device}"
        first = "" if place is None else f"\nfirst place that is not finite: {place}"
        return "\n".join(
            [
                f"step {step.step} (epoch {step.epoch + 1}, batch {step.batch_idx + 1}) of {name} with images {images}",
                *([f"{begin} parts before these are finite"] if begin else []),
                console_table(["part", "largest", "not finite"], rows),
                f"loss: {float(self.trace.loss):.9g} ({loss}){first}",
                f"the run said: {step.place}" if place is None or str(place) != step.place else "the run said the same",
            ]
        )


def replay(path: str | Path) -> Replay:
    """Take the captured step of a run folder, or of a file, again.

    Raises:
        UserError: There is none, or the method cannot be built from it.
    """
    quieten()
    file = find_capture(path)
    captured = read_capture(file)
    threads = torch.get_num_threads()
    torch.set_num_threads(captured.threads)
    try:
        method, context = _build(captured)
    except (KeyError, TypeError, RuntimeError, AttributeError) as error:
        if lacks_memory(error):
            raise
        raise UserError(f"{file}: the step cannot be built again ({reason_of(error)}).") from error
    try:
        return Replay(captured, trace(method, captured.batch, captured.batch_idx, context))
    finally:
        torch.set_num_threads(threads)


def _build(captured: Capture) -> tuple[Method, AbstractContextManager[Any]]:
    """Return the method as it was before the step, and the context of its forward pass."""
    info = captured.info
    config = cast(TrainConfig, from_values({**info["config"], "run_dir": None, "resume": None}))
    half = config.trainer.precision == "16-mixed"  # Lightning has none on a CPU
    here: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "sync_batchnorm": False,
    }
    here |= {"precision": "32-true"} if half else {}
    config = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, **here))
    data, statistics = config.data, Normalization(tuple(info["mean"]), tuple(info["std"]))
    facts = ImageFacts(data.name, "train", info["in_channels"], data.image_size, statistics)
    labelled = captured.batch.label is not None
    method = assemble(config, facts, torch.arange(info["images"]), labelled)
    plugin = lightning(config, logger=False, enable_checkpointing=False).precision_plugin
    plugin.convert_module(method)
    method.load_state_dict(captured.state)
    method.train()
    method.epoch, method.calls, method.total_steps = captured.epoch, captured.step + 1, captured.total_steps
    context = torch.autocast("cpu", torch.float16) if half else plugin.forward_context()
    return method, context
