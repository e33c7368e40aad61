"""Collectives that gradients flow through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        asked = [part.contiguous() for part in gradients[0].chunk(dist.get_world_size(ctx.group))]
        total = torch.empty_like(asked[0])
        dist.reduce_scatter(total, asked, op=dist.ReduceOp.SUM, group=ctx.group)  # half of what an all-reduce sends
        return total, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=ctx.group)
        return total, None


def sum_over(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Add up ``x`` of every rank; its gradient is the sum of what all ranks ask, as that of :func:`gather` is.

    Args:
        x: The same shape on every rank.
        group: Process group; None is a single process and returns ``x``.
    """
    if size_of(group) == 1:
        return x
    out: Tensor = _Sum.apply(x, group)
    return out


def gather(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Concatenate ``x`` of every rank along the first dimension, in rank order.

    The gradient of a rank's part is the sum of what all ranks ask of it. With a loss that averages over a rank's own
    anchors, the mean that DDP takes over ranks is then the gradient of the single-process loss.

    Args:
        x: ``[N, ...]``, the same shape on every rank.
        group: Process group; None is a single process and returns ``x``.
    """
    if size_of(group) == 1:
        return x
    out: Tensor = _Gather.apply(x, group)
    return out


def gather_together(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> tuple[Tensor, ...]:
    """Gather several tensors of one shape by one collective each way, see :func:`gather`."""
    if size_of(group) == 1:
        return tuple(tensors)
    return gather(torch.stack(tuple(tensors), dim=1), group).unbind(1)


def rank_of(group: dist.ProcessGroup | None) -> int:
    """Return this process's rank in ``group``; 0 for None."""
    return 0 if group is None else dist.get_rank(group)


def size_of(group: dist.ProcessGroup | None) -> int:
    """Return the number of ranks of ``group``; 1 for None."""
    return 1 if group is None else dist.get_world_size(group)
