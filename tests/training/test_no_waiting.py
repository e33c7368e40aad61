"""A step asks the device for nothing: between two rows of metrics.csv no value of a tensor reaches Python."""

from __future__ import annotations

import csv
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from selfsup.engine.training import train
from selfsup.methods import Method
from selfsup.registry import methods

#: What makes a host wait for a GPU: values as Python numbers, and sizes that depend on values.
READS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "unique2", "equal", "_unique2"}

#: Code whose tensors are on the CPU in a training on a GPU, too.
ON_THE_CPU = ("/selfsup/augment/", "/selfsup/data/", "/selfsup/functional/masks.py")


class Watch(TorchDispatchMode):
    """Note where values are read, while ``on``. The loader's and the views' own draws live on the CPU by design."""

    def __init__(self) -> None:
        super().__init__()
        self.on = False
        self.reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.on and func.overloadpacket.__name__ in READS:
            here = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and __file__ != f.filename]
            if not any(part in f.filename for f in here for part in ON_THE_CPU):
                self.reads.append(f"{func} in {here[-1].filename}:{here[-1].lineno}")
        return func(*args, **(kwargs or {}))


def reads_in_a_run(config: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Train, and return the reads from the second step to the last but one, callbacks and Lightning's included."""
    watch = Watch()
    original = Method.training_step

    def step(self: Method, batch: Any, batch_idx: int) -> Any:
        # the first step may look at what it was built or resumed with, the last one leads to the end of the epoch
        last = batch_idx == self.trainer.num_training_batches - 1
        watch.on = batch_idx > 0 and not last
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Method, "training_step", step)
    monkeypatch.setattr(Method, "reading_waits", True)  # as of a GPU; of a CPU every step is looked at
    with watch:
        train(config)
    return watch.reads


def settings(log_every: int, *more: str) -> list[str]:
    return ["trainer.max_epochs=1", f"trainer.log_every_steps={log_every}", "online.every_epochs=0", *more]


@pytest.mark.parametrize("method", list(methods))
def test_no_value_is_read_between_two_rows(
    method: str, tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(method, *settings(100, "trainer.progress=true"))
    assert reads_in_a_run(config, monkeypatch) == []


def test_nor_for_the_gram_loss(tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("dinov2", *settings(100, "method.gram_weight=1"))
    assert reads_in_a_run(config, monkeypatch) == []


def test_a_read_would_be_noticed(tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from selfsup.methods.simclr import SimCLR

    original = SimCLR.step

    def step(self: Any, views: Any, batch: Any) -> Any:
        output = original(self, views, batch)
        output.loss.item()
        return output

    monkeypatch.setattr(SimCLR, "step", step)
    reads = reads_in_a_run(tiny_config("simclr", *settings(100)), monkeypatch)
    assert reads
    assert all("_local_scalar_dense" in read for read in reads)


def test_rows_are_those_of_logging_every_step(tiny_config: Callable[..., Any]) -> None:
    """Values are handed to Lightning only in the steps that have a row; the rows do not depend on that."""

    def rows(every: int, *more: str) -> list[dict[str, str]]:
        run = train(tiny_config("pixpro", f"trainer.log_every_steps={every}", *more, run=f"every-{every}{len(more)}"))
        with (run / "metrics.csv").open() as file:
            return [row for row in csv.DictReader(file) if row["train/loss"]]

    every_step, every_third = rows(1), rows(3)
    assert [row["step"] for row in every_step] == [str(step) for step in range(8)]
    assert [row["step"] for row in every_third] == ["2", "5"]
    assert every_third == [row for row in every_step if row["step"] in ("2", "5")]
    assert all(row["train/matched_cells"] for row in every_third)
    accumulated = rows(2, "trainer.accumulate=2")
    assert [row["step"] for row in accumulated] == ["1", "3"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA itself tells of every wait")
def test_cuda_waits_for_nothing(tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    original = Method.training_step

    def step(self: Method, batch: Any, batch_idx: int) -> Any:
        torch.cuda.set_sync_debug_mode("error" if batch_idx == 1 else "default")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Method, "training_step", step)
    try:
        train(tiny_config("simclr", *settings(100, "trainer.accelerator=gpu")))
    finally:
        torch.cuda.set_sync_debug_mode("default")
