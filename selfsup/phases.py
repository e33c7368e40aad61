"""Where the time of a training step goes: a clock that gives every moment to one phase, and where it is read."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from selfsup.data import TrainLoader
from selfsup.methods import Method
from selfsup.nn import Backbone, MomentumEncoder
from selfsup.types import Batch

OTHER = "other"
#: In the order of a step. What no phase claims is ``other``: the trainer's own loop.
PHASES = (
    "data wait",
    "transfer",
    "views",
    "forward",
    "momentum forward",
    "loss",
    "backward",
    "optimiser",
    "momentum update",
    "logging",
    "callbacks",
    OTHER,
)


@dataclass
class Step:
    """One optimiser step: from asking for its first batch to asking for the next step's.

    Attributes:
        phases: Seconds of each phase that occurred.
        batches: Batches it took.
        begins_epoch: Whether it is the first of an epoch, which waits for the loader to start.
    """

    batches: int = 0
    begins_epoch: bool = False
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The whole step."""
        return sum(self.phases.values())


class Clock:
    """Gives every moment of a step to the innermost phase that is open, so that the phases add up to the step.

    Args:
        device: Where the training runs; a CUDA device is waited for wherever one phase ends and another begins. None
            never waits.
    """

    def __init__(self, device: torch.device | None = None) -> None:
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

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside as ``name``, but for the phases inside it."""
        if "backward" in self._open:  # a forward pass that is repeated there belongs to it
            yield
            return
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with every call counted as ``name``."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return call

    def _turn(self) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        if self._step is not None:
            name = self._open[-1] if self._open else OTHER
            self._step.phases[name] = self._step.phases.get(name, 0.0) + now - self._mark
        self._mark = now


class TimedLoader:
    """A loader whose waits are read by a clock, and which ends after some optimiser steps.

    Args:
        loader: What is iterated.
        clock: Receives the phase ``data wait``.
        enough: Asked before every batch; once true, there is none. (Lightning's own ways to stop write a row of metrics
            that no other step would.)
    """

    def __init__(self, loader: TrainLoader, clock: Clock, enough: Callable[[], bool]) -> None:
        self.loader, self.clock, self.enough = loader, clock, enough

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        begins_epoch = True
        while not self.enough():
            self.clock.begin_batch(begins_epoch)
            with self.clock.phase("data wait"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
            begins_epoch = False

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)


def watch(trainer: pl.Trainer, method: Method, clock: Clock) -> None:
    """Put the clock's phases around the parts of a training that is about to take its first step.

    Nothing but time is read: the arithmetic, its order and every random number stay as they are. The wrappers sit on
    these instances and go with them.
    """

    def put(owner: Any, name: str, phase: str) -> None:
        setattr(owner, name, clock.timed(phase, getattr(owner, name)))

    put(trainer.strategy, "batch_to_device", "transfer")
    put(method, "step", "loss")  # less the networks inside it
    put(method, "backward", "backward")
    put(method, "after_optimizer_step", "momentum update")
    put(method, "log", "logging")
    for name in ("configure_gradient_clipping", "optimizer_zero_grad", "lr_scheduler_step"):
        put(method, name, "optimiser")
    for module, phase in _networks(method):
        # the slot that nn.Module calls in place of its own forward and hooks when it is set
        call = getattr(module, "_compiled_call_impl", None) or module._call_impl
        module._compiled_call_impl = clock.timed(phase, call)
        if isinstance(module, Backbone):
            put(module, "forward_dense", phase)
    for optimizer in trainer.optimizers:
        _watch_optimizer(optimizer, clock)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for name in ("on_train_batch_start", "on_train_batch_end"):
            put(callback, name, "callbacks")
    for logger in trainer.loggers:
        put(logger, "log_metrics", "logging")
        put(logger, "save", "logging")


def _networks(method: Method) -> Iterator[tuple[nn.Module, str]]:
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


def _watch_optimizer(optimizer: torch.optim.Optimizer, clock: Clock) -> None:
    """Count an optimiser's step without the forward and backward passes that Lightning hands to it as a closure."""
    original = optimizer.step

    @functools.wraps(original)
    def step(closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        inner = None if closure is None else clock.timed(OTHER, closure)
        with clock.phase("optimiser"):
            return original(closure=inner, **kwargs)

    setattr(optimizer, "step", step)  # noqa: B010 a type checker has methods for constants


def synchronize(device: torch.device | None) -> None:
    """Wait until a CUDA device has done what it was given."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
