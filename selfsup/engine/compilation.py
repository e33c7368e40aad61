"""Compiling the networks of a method while it trains, and the way back when that fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import nn

from selfsup.augment import ViewGenerator
from selfsup.engine.fusible import make_fusible, undo_fusible
from selfsup.methods import Method
from selfsup.nn import Backbone, FeatureQueue
from selfsup.shortage import TRAINING, ShortageError, lacks_memory, sentence
from selfsup.types import Batch

_ENTRIES = ("forward", "forward_dense", "forward_both", "forward_tokens")  # the ways into a module
_CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # have no forward


class Compile(pl.Callback):
    """Compile backbones and heads, those of momentum encoders too, with the first batch of a run.

    The first batch is rehearsed before it counts: loss and gradients are computed once, so that all of the compilation
    happens there, and then parameters, buffers and random state are put back. A failure leaves the run as it would be
    without this callback and says so in one line.

    Modules are compiled in place, so that state dicts keep their keys. Evaluation is not compiled: its shapes differ.
    """

    def __init__(self) -> None:
        self._compiled: list[nn.Module] = []
        self._done = self._graphs = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(module, Method)
        if not self._done:
            self._done = True
            self._begin(trainer, module, batch, batch_idx)
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def _begin(self, trainer: pl.Trainer, method: Method, batch: Batch, batch_idx: int) -> None:
        # gradients that add up outlive a step, and a CUDA graph writes over what it returned in the step before
        self._graphs = method.device.type == "cuda" and trainer.accumulate_grad_batches == 1
        start = time.perf_counter()
        self._compiled = compile_networks(method, "reduce-overhead" if self._graphs else None)
        try:
            with torch._dynamo.config.patch(recompile_limit=64):  # blocks of one class share a cache
                rehearse(method, batch, batch_idx, trainer.precision_plugin.forward_context())
        except Exception as error:  # whatever the compiler raises; a fault of the step itself comes again without it
            self._undo()
            if lacks_memory(error):
                less = f"{TRAINING}, or trainer.compile=false"
                raise ShortageError(sentence("trainer.compile", error, less)) from error
            reason = " ".join((str(error) or type(error).__name__).split())[:200]
            message = f"trainer.compile: the networks could not be compiled and train as they are ({reason})."
        else:
            seconds = time.perf_counter() - start
            message = f"trainer.compile: compiled {len(self._compiled)} parts in {seconds:.0f} s."
        if trainer.is_global_zero:
            print(message, flush=True)

    def _undo(self) -> None:
        for module in self._compiled:
            for entry in _ENTRIES:
                vars(module).pop(entry, None)
            undo_fusible(module)
        self._compiled, self._graphs = [], False

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self._undo()


def compile_networks(method: Method, mode: str | None = None) -> list[nn.Module]:
    """Compile, in place, the parts of a method that hold weights, and return them. Nothing runs yet.

    A backbone of repeated blocks is compiled block by block: blocks of one shape share one compilation. Any other
    backbone is compiled as a whole, and so is every head.
    """
    parts = [
        part
        for network in networks(method)
        for part in (isinstance(network, Backbone) and repeated_blocks(network)) or [network]
    ]
    for module in parts:
        if on_cpu := next(module.parameters()).device.type == "cpu":
            make_fusible(module)
        options = _vector_options(module) if on_cpu else None
        for entry in _ENTRIES:
            if hasattr(module, entry):
                # shapes are fixed in training; each of the few that there are gets code of its own
                function = torch.compile(getattr(module, entry), dynamic=False, mode=mode, options=options)
                setattr(module, entry, function)
    return parts


def _vector_options(module: nn.Module) -> dict[str, str | int | bool | Callable[..., Any]] | None:
    """Return options for convolutions of at most 8 channels on CPUs with vectors of 16 numbers.

    Sums over all but the channels are vectorised over the channels, and those that fill no vector are summed one by
    one. Wider layers are better off with vectors of 16.
    """
    channels = [inner.out_channels for inner in module.modules() if isinstance(inner, nn.Conv2d)]
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return {"cpp.simdlen": 256} if wide and min(channels, default=16) <= 8 else None


def rehearse(method: Method, batch: Batch, batch_idx: int, context: AbstractContextManager[Any]) -> None:
    """Take a step up to the gradients and leave no trace of it."""
    tensors = [*method.parameters(), *method.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    devices = [method.device] if method.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            with context:
                loss = method.held_step(method.draw_views(batch, batch_idx), batch).loss
            torch.autograd.grad(loss, trained, allow_unused=True)  # not backward(): DDP waits for one of these a step
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)


def networks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the backbones and heads of a method, those of momentum encoders too: its parts that hold weights."""
    for child in module.children():
        if isinstance(child, ViewGenerator | FeatureQueue) or next(child.parameters(), None) is None:
            continue
        around = isinstance(child, _CONTAINERS) or any(isinstance(inner, Backbone) for inner in child.modules())
        if around and not isinstance(child, Backbone):
            yield from networks(child)
        else:
            yield child


def outermost_blocks(backbone: Backbone) -> list[nn.Module]:
    """Return the blocks that a network is stacked from: what has parts of its own in a list of modules."""
    blocks = [
        block
        for stack in backbone.modules()
        if isinstance(stack, nn.Sequential | nn.ModuleList)
        for block in stack
        if next(block.children(), None) is not None and not isinstance(block, nn.Sequential | nn.ModuleList)
    ]
    inner = {id(part) for block in blocks for part in list(block.modules())[1:]}
    return [block for block in blocks if id(block) not in inner]


def repeated_blocks(backbone: Backbone) -> list[nn.Module]:
    """Return the blocks of a network that mostly repeats itself, as transformers and deep ResNets do, else none."""
    blocks = outermost_blocks(backbone)
    kinds = {repr(block) for block in blocks}
    return blocks if 2 * len(kinds) <= len(blocks) else []


def evaluating() -> AbstractContextManager[None]:
    """Return a context in which compiled modules run as they are written."""
    return cast(AbstractContextManager[None], torch.compiler.set_stance("force_eager"))
