"""Which process this is, and what all of them agree on."""

from __future__ import annotations

import torch
import torch.distributed as dist


def world() -> dist.ProcessGroup | None:
    """Return the group of all ranks, or None in a single process."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return whether ``flag`` is set on at least one rank. Every rank must call it."""
    group = world()
    if group is None:
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX, group=group)
    return bool(value.item())
