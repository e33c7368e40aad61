"""A clock that gives every moment of a training step to one phase, and where it is read."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import Profiler
from torch import nn

from selfsup.methods import Method
from selfsup.nn import MomentumEncoder

BACKWARD, OTHER = "backward", "other"
#: In the order of a step. What no phase claims is ``other``: the trainer's own loop.
PHASES = (
    "data wait",
    "transfer",
    "views",
    "forward",
    "momentum forward",
    "loss",
    BACKWARD,
    "optimiser",
    "momentum update",
    "logging",
    "callbacks",
    OTHER,
)

#: Phases of what Lightning names (``[Strategy]….backward``), by the last word. All else belongs to what is around it.
NAMED = {
    "batch_to_device": "transfer",
    "training_step": OTHER,  # Lightning hands it and the backward pass to the optimiser's step
    "backward": BACKWARD,
    "optimizer_step": "optimiser",
    "optimizer_zero_grad": "optimiser",
    "lr_scheduler_step": "optimiser",
}


@dataclass
class Step:
    """One optimiser step: from asking for its first batch to asking for the next step's.

    Attributes:
        batches: Batches it took.
        begins_epoch: Whether it is the first of an epoch, which waits for the loader to start.
        phases: Seconds of each phase that occurred.
    """

    batches: int = 0
    begins_epoch: bool = False
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The whole step."""
        return sum(self.phases.values())


class Clock(Profiler):
    """Gives every moment of a step to the innermost phase that is open, so that the phases add up to the step.

    As the profiler of a trainer it hears of the parts of a step that Lightning names; ``timed`` adds others.

    Args:
        device: Where the training runs; a CUDA device is waited for wherever one phase ends and another begins. None
            never waits.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self.device = device
        self.steps: list[Step] = []
        self._step: Step | None = None
        self._open: list[str] = []
        self._mark = 0.0
        self._moved = False

    def begin_batch(self, begins_epoch: bool) -> None:
        """A batch is asked for. After an optimiser step this is where the next one begins."""
        if self._moved:
            self.end_step()
        self._turn()
        if self._step is None:
            self._step = Step(begins_epoch=begins_epoch)
        self._step.batches += 1

    def weights_moved(self, *_: Any) -> None:
        """The optimiser has taken its step (a hook for ``register_step_post_hook``)."""
        self._moved = True

    @property
    def taken(self) -> int:
        """Steps that the optimiser has taken since the start."""
        return len(self.steps) + self._moved

    def end_step(self) -> None:
        """Close the step that is open, if there is one."""
        self._turn()
        if self._step is not None:
            self.steps.append(self._step)
        self._step, self._moved = None, False

    def start(self, action_name: str) -> None:
        """Count what follows as the phase of an action, until it stops, but for the phases inside it."""
        if (phase := self._phase(action_name)) is not None:
            again = BACKWARD in self._open  # a forward pass that is repeated there belongs to it
            if not again:
                self._turn()
            self._open.append(BACKWARD if again else phase)

    def stop(self, action_name: str) -> None:
        """End the action."""
        if self._phase(action_name) is not None:
            if self._open.count(BACKWARD) < 2:
                self._turn()
            self._open.pop()

    def _phase(self, action: str) -> str | None:
        if action in PHASES:
            return action
        return "callbacks" if action.startswith("[Callback]") else NAMED.get(action.rpartition(".")[2])

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with every call counted as ``phase``."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.profile(phase):
                return function(*args, **kwargs)

        return call

    def _turn(self) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        if self._step is not None:
            name = self._open[-1] if self._open else OTHER
            self._step.phases[name] = self._step.phases.get(name, 0.0) + now - self._mark
        self._mark = now


def watch(trainer: pl.Trainer, method: Method, clock: Clock) -> None:
    """Put the clock's phases around the parts of a training that is about to take its first step.

    Nothing but time is read: the arithmetic, its order and every random number stay as they are. The wrappers sit on
    these instances and go with them.
    """

    def put(phase: str, owner: Any, *names: str) -> None:
        for name in names:
            setattr(owner, name, clock.timed(phase, getattr(owner, name)))

    trainer.profiler = clock  # type: ignore[attr-defined]
    put("loss", method, "step")  # less the networks inside it
    put("momentum update", method, "after_optimizer_step")
    put("logging", method, "log")
    for logger in trainer.loggers:
        put("logging", logger, "log_metrics", "save")
    for module, phase in networks(method):
        # the slot that nn.Module calls in place of its own forward and hooks when it is set
        call = getattr(module, "_compiled_call_impl", None) or module._call_impl
        module._compiled_call_impl = clock.timed(phase, call)
        for name in ("forward_dense", "forward_both", "forward_tokens"):
            if hasattr(module, name):
                put(phase, module, name)


def networks(method: Method) -> Iterator[tuple[nn.Module, str]]:
    """The modules that a method calls, with their phases; a list of modules is not called, its members are."""
    modules = list(method.children())
    while modules:
        module = modules.pop()
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            modules += module.children()
        elif module is method.views:
            yield module, "views"
        else:
            yield module, "momentum forward" if isinstance(module, MomentumEncoder) else "forward"


def seconds_of(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Return how long some work takes, the device's part included."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device | None) -> None:
    """Wait until a CUDA device has done what it was given."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
