"""The feature queue: a ring of keys of earlier batches."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.distributed import world
from selfsup.functional.arguments import count, floats, full_precision
from selfsup.functional.collectives import gather


class FeatureQueue(nn.Module):
    """A first-in, first-out store of L2-normalised keys, identical on all ranks and saved with the checkpoint.

    Reading and writing are separate calls. Read ``negatives()``, compute the loss, then ``enqueue``: a key that is
    already in the queue when it is contrasted would be its own negative.

    Args:
        size: Number of keys ``K``.
        dim: Width ``D`` of a key.

    Attributes:
        keys: float32 buffer ``[K,D]``; at first random unit vectors.
        pointer: int64 buffer, where the next key goes.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        count("FeatureQueue", size=size, dim=dim)
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def negatives(self) -> Tensor:
        """Return a copy of the stored keys ``[K,D]``: the backward pass reads it after ``enqueue`` has written."""
        return cast(Tensor, self.keys).clone()

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Put the keys ``[N,D]`` of all ranks in, in rank order, over the oldest; any N up to ``K`` in all.

        Raises:
            ValueError: More keys than the queue holds.
        """
        store, pointer = cast(Tensor, self.keys), cast(Tensor, self.pointer)
        floats("FeatureQueue", f"[N?,{store.shape[1]}]", keys=keys)
        keys = full_precision(keys)
        largest = keys.abs().amax(1, keepdim=True)  # of 1e30 the square is infinite, of 1e-30 it is 0
        keys = F.normalize(keys / largest.clamp_min(torch.finfo(keys.dtype).tiny), dim=1)
        keys = gather(keys.to(store.dtype), world())
        size = len(store)
        if len(keys) > size:
            raise ValueError(f"FeatureQueue: a size of {size} keys cannot take {len(keys)} at once.")
        store[(pointer + torch.arange(len(keys), device=store.device)) % size] = keys
        pointer.copy_((pointer + len(keys)) % size)
