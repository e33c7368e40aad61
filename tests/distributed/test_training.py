"""Two processes train like one with all the images: loss, gradients, parameters after three steps, queues."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from gloo import Ranks
from tiny import tiny, written
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from selfsup.config import load_config
from selfsup.data import Share, TrainLoader, load_splits
from selfsup.distributed import world
from selfsup.engine.sharding import shard
from selfsup.engine.training import build_method
from selfsup.functional.collectives import gather
from selfsup.methods import Method
from selfsup.optimization import build_optimizer
from selfsup.registry import methods

STEPS = 3


class _Step(nn.Module):
    """Gives DDP a forward to wrap."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Any, batch_idx: int) -> Tensor:
        return self.method.training_step(batch, batch_idx)


def train_steps(
    rank: int, world_size: int, name: str, overrides: list[str], sharded: bool = False, own_optimizer: bool = False
) -> dict[str, Any]:
    """Take three steps in float64 and return losses, first gradients, parameters and buffers.

    The optimiser is SGD, or with ``own_optimizer`` that of the configuration at a learning rate of 0.01.
    """
    config = load_config([*tiny(name), *overrides])
    pl.seed_everything(config.seed, verbose=False)
    splits = load_splits(config.data)
    method = build_method(config, splits, world_size)
    if method.sync_batchnorm:
        share_batch_norm(method)
    method = method.double()
    trainer = types.SimpleNamespace(
        world_size=world_size, global_rank=rank, current_epoch=0, global_step=0, barebones=False
    )
    method.trainer = trainer  # type: ignore[assignment]
    method.total_steps = STEPS
    method.log = lambda *_, **__: None  # type: ignore[method-assign]
    step: nn.Module = _Step(method)
    if sharded:
        shard(method, init_device_mesh("cpu", (world_size,)))
    elif world_size > 1:
        step = DistributedDataParallel(step, broadcast_buffers=False)
    loader = TrainLoader(splits.pretrain, config.batch_size, config.seed, Share(rank, world_size))
    if own_optimizer:
        optimizer = build_optimizer(method.param_groups(), config.optimizer, 0.01)
    else:
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1, momentum=0.9)
    losses, gradients = [], {}
    for number, batch in zip(range(STEPS), loader, strict=False):
        optimizer.zero_grad()
        loss = step(batch, number)
        loss.backward()
        method.on_after_backward()
        if number == 0:
            gradients = {n: whole(p.grad.clone()) for n, p in method.named_parameters() if p.grad is not None}
        optimizer.step()
        method.after_optimizer_step()
        trainer.global_step += 1
        losses.append(loss.detach())
    state = {n: whole(p.detach()) for n, p in method.named_parameters()}
    # running statistics of BatchNorm are per rank: no loss reads them
    kept = {n: b for n, b in method.named_buffers() if not n.endswith(("running_mean", "running_var"))}
    return {"losses": torch.stack(losses), "gradients": gradients, "parameters": state, "buffers": kept}


def whole(value: Tensor) -> Tensor:
    """Put the parts of a tensor together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


class GlobalBatchNorm(nn.Module):
    """BatchNorm with the statistics of all ranks, as SyncBatchNorm has them, which torch offers on GPUs only."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        everything = gather(x, world())
        over = [d for d in range(x.ndim) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(x.ndim)]
        mean, variance = everything.mean(over), everything.var(over, correction=0)
        out = (x - mean.view(shape)) / (variance.view(shape) + self.eps).sqrt()
        return out if self.weight is None else out * self.weight.view(shape) + self.bias.view(shape)


def share_batch_norm(module: nn.Module) -> None:
    """Let every BatchNorm below ``module`` see the images of all ranks."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, GlobalBatchNorm(child))
        else:
            share_batch_norm(child)


#: Every method of the package as in its tests' TINY, or in each of the ways that these list in RANKS.
OWN = [name for name in methods if methods[name].target.__module__.startswith("selfsup.")]
CASES = [(name, overrides) for name in OWN for overrides in written("RANKS").get(name, [[]])]
#: Of a backbone that goes on from weights: an anchor compares the views of all ranks.
HELD = [
    ("simclr", ["backbone.anchor=gram", "backbone.anchor_weight=3", "backbone.freeze=conv1,bn1"]),
    ("byol", ["backbone.anchor=cosine"]),
    ("dino", ["backbone.anchor=gram"]),
    ("densecl", ["method.bn_groups=2", "backbone.anchor=gram"]),
    ("simclr", ["backbone.freeze_epochs=1"]),
]


@pytest.mark.parametrize(("name", "overrides"), [*CASES, *HELD])
def test_two_processes_equal_one(name: str, overrides: list[str], two_ranks: Ranks) -> None:
    """With BatchNorm too: its groups, or its global statistics, are of the same images for any number of processes."""
    assert_ranks_equal_one(two_ranks, name, overrides)


QUICK = ("moco", "swav", "wmse")


def over_four() -> Iterator[Any]:
    """Yield the cases for four processes: the first of each of ``QUICK``, and all others as long ones.

    Groups of BatchNorm are at least as many as the processes.
    """
    quick = [next(case for case in CASES if case[0] == name) for name in QUICK]
    for name, overrides in CASES:
        more = ["method.bn_groups=4"] if "method.bn_groups=2" in overrides else []
        marks = [] if (name, overrides) in quick else [pytest.mark.long]
        yield pytest.param(name, [*overrides, *more], marks=marks)


@pytest.mark.parametrize(("name", "overrides"), over_four())
def test_four_processes_equal_one(name: str, overrides: list[str], four_ranks: Ranks) -> None:
    assert_ranks_equal_one(four_ranks, name, overrides)


def assert_ranks_equal_one(ranks: Ranks, name: str, overrides: list[str]) -> None:
    one = train_steps(0, 1, name, overrides)
    several = ranks.run(train_steps, ranks.size, name, overrides)
    losses = torch.stack([rank["losses"] for rank in several])
    torch.testing.assert_close(losses.mean(0), one["losses"], rtol=1e-9, atol=1e-9)
    assert float(one["losses"].std()) > 0
    for rank in several:
        assert rank["gradients"].keys() == one["gradients"].keys()
        for part in ("gradients", "parameters"):
            for key, value in one[part].items():
                torch.testing.assert_close(rank[part][key], value, rtol=1e-7, atol=1e-9, msg=f"{part} {key}")
        assert rank["buffers"].keys() == one["buffers"].keys()
        for key, value in one["buffers"].items():
            # queues store float32
            torch.testing.assert_close(rank["buffers"][key], value, rtol=0, atol=1e-6, msg=key)
