"""Batches for training, in an order that depends on (seed, epoch) alone, and for evaluation, in the stored order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.types import Batch

_Read = tuple[Tensor, Tensor, Tensor]  # positions that were read, their images, positions that could not be


class TrainLoader:
    """Shuffled batches of one rank; iterating gives one epoch, or what is left of it.

    Each epoch has one permutation of the dataset, keyed by ``(seed, epoch)``. Batch ``b`` is its slice
    ``[b * batch_size : (b + 1) * batch_size]`` and rank ``r`` reads the ``r``-th contiguous share of that slice: the
    images of a step do not depend on the number of ranks. The last, incomplete batch is dropped. An image that cannot
    be decoded is replaced by the next one of the dataset that can, with that one's label and index.

    Args:
        dataset: What is trained on.
        batch_size: Images of a step over all ranks.
        seed: Seed of the order.
        rank, world_size: This process, and how many there are.
        workers: Processes that decode a streamed dataset; a resident one is indexed in this process.
        position: Returns (epoch, batches already done in it). Asked when iteration begins, so that a resumed run
            goes on with the exact rest of its epoch. None counts the epochs of this loader from 0.

    Raises:
        UserError: The batch is larger than the dataset, or does not split evenly over the ranks.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        position: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; set it to at least 1.")
        if batch_size > len(dataset):
            raise UserError(
                f"batch_size is {batch_size} but there are only {len(dataset)} training images; "
                "lower batch_size, or raise data.limit if it is set."
            )
        if batch_size % world_size:
            raise UserError(
                f"batch_size is {batch_size}, which does not split over {world_size} processes; "
                f"set it to a multiple of {world_size}."
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.workers = workers
        self._position = position
        self._epochs_begun = 0

    def __len__(self) -> int:
        return len(self.dataset) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        # Nothing runs before the first next(): Lightning builds the iterator before it has restored its progress
        if self._position is None:
            epoch, done = self._epochs_begun, 0
            self._epochs_begun += 1
        else:
            epoch, done = self._position()
        order = epoch_order(len(self.dataset), self.seed, epoch)
        share = self.batch_size // self.world_size
        begins = (batch * self.batch_size + self.rank * share for batch in range(done, len(self)))
        requests = [order[begin : begin + share] for begin in begins]
        yield from _batches(self.dataset, requests, self.workers, replace=True)

    # Lightning takes a loader that has these two methods for one that can resume within an epoch, and then neither
    # warns nor skips batches by itself. There is nothing to store: the order follows from (seed, epoch), and the
    # place in it from ``position``.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """Return the permutation of ``range(length)`` that an epoch follows: int64 ``[length]``."""
    # Two numbers make one generator seed; a large odd factor keeps (seed, epoch + 1) apart from (seed + 1, epoch)
    mixed = (seed * 0x9E3779B97F4A7C15 + epoch * 0xC2B2AE3D27D4EB4F) % 2**63
    return torch.randperm(length, generator=torch.Generator().manual_seed(mixed))


def eval_batches(dataset: ImageDataset, batch_size: int, workers: int = 0) -> Iterator[Batch]:
    """Yield every image once, in order, for feature extraction; those that cannot be decoded are left out."""
    positions = torch.arange(len(dataset))
    return _batches(dataset, list(torch.split(positions, batch_size)), workers, replace=False)


def _batches(dataset: ImageDataset, requests: list[Tensor], workers: int, replace: bool) -> Iterator[Batch]:
    reads: Iterator[_Read | UserError]
    if dataset.resident or workers == 0:
        reads = (_read(dataset, positions, replace) for positions in requests)
    else:
        reads = iter(
            DataLoader(
                _Requests(dataset, requests, replace),
                batch_size=None,
                num_workers=workers,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # else starting the workers would draw from the global generator
            )
        )
    for read in reads:
        if isinstance(read, UserError):
            raise read
        positions, images, undecodable = read
        # Workers are other processes: what they found is told to the dataset here, where it is logged and counted
        dataset.report_undecodable(undecodable)
        if len(positions):
            labels = None if dataset.labels is None else dataset.labels[positions]
            yield Batch(images, labels, dataset.index[positions])


class _Requests(Dataset[_Read | UserError]):
    """One item is one batch, so that workers return whole batches in order."""

    def __init__(self, dataset: ImageDataset, requests: list[Tensor], replace: bool) -> None:
        self.dataset, self.requests, self.replace = dataset, requests, replace

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, item: int) -> _Read | UserError:
        try:
            return _read(self.dataset, self.requests[item], self.replace)
        except UserError as error:
            return error  # raised in a worker it would arrive wrapped in a traceback


def _read(dataset: ImageDataset, positions: Tensor, replace: bool) -> _Read:
    images, decoded = dataset.read_decodable(positions)
    if decoded.all():
        return positions, images, positions[:0]
    undecodable = [positions[~decoded]]
    if replace:
        positions = positions.clone()
        for slot in (~decoded).nonzero().flatten().tolist():
            for step in range(1, len(dataset)):
                candidate = (positions[slot : slot + 1] + step) % len(dataset)
                image, good = dataset.read_decodable(candidate)
                if good.all():
                    images[slot], positions[slot], decoded[slot] = image[0], candidate[0], True
                    break
                undecodable.append(candidate)
    return positions[decoded], images[decoded], torch.unique(torch.cat(undecodable))
