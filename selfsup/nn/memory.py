"""Memories: something kept of every training image, found by the image's index."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.distributed import world
from selfsup.functional.arguments import count
from selfsup.functional.collectives import gather


class ImageIndex(nn.Module):
    """Which images there are, and where each is kept; what keeps something of them builds on it.

    What is kept is keyed by the stable index of an image in its source (``Batch.index``), never by its place in an
    epoch or on a rank: the order of the images, and the number of processes, may change.

    Args:
        index: int64 ``[N]``, the images; None holds none, as for a network that is built without its data.

    Attributes:
        index: int64 buffer ``[N]``, ascending.
    """

    def __init__(self, index: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("index", torch.empty(0, dtype=torch.long) if index is None else index.sort().values)
        self._known: tuple[int, Tensor] | None = None  # a copy on the CPU, and the version that it is of

    def __len__(self) -> int:
        return len(cast(Tensor, self.index))

    def rows(self, index: Tensor) -> Tensor:
        """Return where the images are, int64 ``[B]``, on the memory's device; without waiting for it.

        Args:
            index: int64 ``[B]`` on the CPU.

        Raises:
            ValueError: An image that the memory was not built for.
        """
        own = cast(Tensor, self.index)
        if self._known is None or self._known[0] != own._version:  # built, or loaded from a checkpoint
            self._known = (own._version, own.cpu())
        known = self._known[1]
        rows = torch.searchsorted(known, index.cpu())
        if not len(known) or not all((known[rows.clamp(max=len(known) - 1)] == index.cpu()).tolist()):
            unknown = sorted(set(index.tolist()) - set(known.tolist()))
            raise ValueError(
                f"{type(self).__name__}: it was built for {len(known)} images, and {unknown[0]} is no index of them."
            )
        return rows.to(own.device, non_blocking=True)


class ImageMemory(ImageIndex):
    """Unit vectors of every training image, identical on all ranks and saved with the checkpoint.

    Args:
        index: int64 ``[N]``, see :class:`ImageIndex`.
        dim: Width ``D`` of a vector.
        banks: Vectors kept of each image.

    Attributes:
        values: float32 buffer ``[banks,N,D]``; at first random unit vectors.
    """

    def __init__(self, index: Tensor | None, dim: int, banks: int = 1) -> None:
        super().__init__(index)
        count("ImageMemory", dim=dim, banks=banks)
        self.register_buffer("values", F.normalize(torch.randn(banks, len(self), dim), dim=2))

    @torch.no_grad()
    def write(self, rows: Tensor, vectors: Tensor) -> None:
        """Keep the vectors of all ranks' images, L2-normalised.

        Args:
            rows: int64 ``[B]``, as :meth:`rows` gives them; no image twice among all ranks.
            vectors: ``[banks,B,D]``.
        """
        values = cast(Tensor, self.values)
        vectors = F.normalize(vectors.to(values.dtype), dim=2)
        everybody = gather(vectors.transpose(0, 1), world()).transpose(0, 1)
        values[:, gather(rows, world())] = everybody


class ImageNumbers(ImageIndex):
    """A few numbers of every training image, identical on all ranks and saved with the checkpoint.

    Args:
        index: int64 ``[N]``, see :class:`ImageIndex`.
        first: What each of them is at first.

    Attributes:
        values: float32 buffer ``[len(first),N]``.
    """

    def __init__(self, index: Tensor | None, *first: float) -> None:
        super().__init__(index)
        self.register_buffer("values", torch.tensor(first)[:, None].repeat(1, len(self)))

    def read(self, rows: Tensor) -> Tensor:
        """Return the numbers ``[len(first),B]`` of images, whose ``rows`` are as :meth:`rows` gives them."""
        return cast(Tensor, self.values)[:, rows]

    @torch.no_grad()
    def write(self, rows: Tensor, numbers: Tensor) -> None:
        """Keep the numbers of all ranks' images.

        Args:
            rows: int64 ``[B]``, as :meth:`rows` gives them; no image twice among all ranks.
            numbers: ``[len(first),B]``.
        """
        values = cast(Tensor, self.values)
        values[:, gather(rows, world())] = gather(numbers.to(values.dtype).T, world()).T
