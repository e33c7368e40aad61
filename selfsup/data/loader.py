"""Batches for training, in an order that depends on (seed, epoch) alone, and for evaluation, in the stored order."""

from __future__ import annotations

import atexit
import multiprocessing
import queue
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from selfsup.data.base import ImageDataset
from selfsup.data.crashes import Reading, crash_of, started_since
from selfsup.errors import UserError
from selfsup.ragged import Images, pack, unpack
from selfsup.types import Batch

READ_AHEAD = 4  # batches that a thread reads from a cache before they are asked for

_Read = tuple[Tensor, Images, Tensor]  # positions that were read, their images, positions that could not be


class Share(NamedTuple):
    """Which of the processes of a training reads, and how many there are."""

    rank: int = 0
    world_size: int = 1


class TrainLoader:
    """Shuffled batches of one rank; iterating gives one epoch, or what is left of it.

    Each epoch has one permutation of the dataset, keyed by ``(seed, epoch)``. Batch ``b`` is its slice
    ``[b * batch_size : (b + 1) * batch_size]`` and rank ``r`` reads the ``r``-th contiguous share of that slice: the
    images of a step do not depend on the number of ranks. The last, incomplete batch is dropped. An image that cannot
    be decoded is replaced by the next one of the dataset that can, with that one's label and index.

    Reading does not stop at the end of an epoch: the first batches of the next one are decoded while the last of this
    one are trained on and whatever follows is evaluated.

    Args:
        dataset: What is trained on.
        batch_size: Images of a step over all ranks.
        seed: Seed of the order.
        share: Of which process of the training.
        workers: Processes that decode a streamed dataset, of which a cached one needs only a thread; 0 reads in this
            thread, as a resident one always does.
        position: Returns (epoch, batches already done in it). Asked when iteration begins, so that a resumed run
            goes on with the exact rest of its epoch. None counts the epochs of this loader from 0.
        epochs: Epochs of the training, beyond which nothing is read ahead; None is for loops without an end.

    Raises:
        UserError: The batch is larger than the dataset, or does not split evenly over the ranks.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        seed: int,
        share: Share = Share(),
        workers: int = 0,
        position: Callable[[], tuple[int, int]] | None = None,
        epochs: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; set it to at least 1.")
        if batch_size > len(dataset):
            raise UserError(
                f"batch_size is {batch_size} but there are only {len(dataset)} training images; "
                "lower batch_size, or raise data.limit if it is set."
            )
        if batch_size % share.world_size:
            raise UserError(
                f"batch_size is {batch_size}, which does not split over {share.world_size} processes; "
                f"set it to a multiple of {share.world_size}."
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.share = share
        self.workers = workers
        self._position = position
        self._epochs_begun = 0
        self._epochs = epochs
        self._ahead: tuple[int, Iterator[Batch]] | None = None  # an epoch, and the reading that has come to its begin

    def __len__(self) -> int:
        return len(self.dataset) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        # Nothing runs before the first next(): Lightning builds the iterator before it has restored its progress
        if self._position is None:
            epoch, done = self._epochs_begun, 0
            self._epochs_begun += 1
        else:
            epoch, done = self._position()
        if done == 0 and self._ahead is not None and self._ahead[0] == epoch:
            batches = self._ahead[1]
        else:
            batches = _batches(self.dataset, self._requests(epoch, done), self.workers, replace=True)
        self._ahead = None  # one that stops within its epoch is not gone on with
        for number in range(done, len(self)):
            batch = next(batches)
            if number == len(self) - 1 and (self._epochs is None or epoch + 1 < self._epochs):
                self._ahead = epoch + 1, batches
            yield batch

    def _requests(self, epoch: int, done: int) -> Iterator[Tensor]:
        rank, world_size = self.share
        own = self.batch_size // world_size
        last = None if self._epochs is None else max(epoch, self._epochs - 1)
        while last is None or epoch <= last:
            order = epoch_order(len(self.dataset), self.seed, epoch, self.dataset.blocks())
            for number in range(done, len(self)):
                begin = number * self.batch_size + rank * own
                yield order[begin : begin + own]
            epoch, done = epoch + 1, 0

    # Lightning takes a loader that has these two methods for one that can resume within an epoch, and then neither
    # warns nor skips batches by itself. There is nothing to store: the order follows from (seed, epoch), and the
    # place in it from ``position``.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def epoch_order(length: int, seed: int, epoch: int, blocks: tuple[Tensor, int] | None = None) -> Tensor:
    """Return the permutation of ``range(length)`` that an epoch follows: int64 ``[length]``.

    Args:
        length, seed, epoch: Images of the dataset, and the key of the order.
        blocks: As ``ImageDataset.blocks``; None shuffles all images with each other.
    """
    # Two numbers make one generator seed; a large odd factor keeps (seed, epoch + 1) apart from (seed + 1, epoch)
    mixed = (seed * 0x9E3779B97F4A7C15 + epoch * 0xC2B2AE3D27D4EB4F) % 2**63
    generator = torch.Generator().manual_seed(mixed)
    if blocks is None:
        return torch.randperm(length, generator=generator)
    block_of, window = blocks
    together = torch.argsort(block_of, stable=True)
    counts = torch.unique_consecutive(block_of[together], return_counts=True)[1]
    stored = torch.split(together, counts.tolist())
    order: list[Tensor] = []
    waiting: list[Tensor] = []
    for block in torch.randperm(len(stored), generator=generator).tolist():
        waiting.append(stored[block])
        if sum(map(len, waiting)) >= window:
            order.append(_mixed(waiting, generator))
            waiting = []
    return torch.cat([*order, _mixed(waiting, generator)] if waiting else order)


def _mixed(blocks: list[Tensor], generator: torch.Generator) -> Tensor:
    rows = torch.cat(blocks)
    return rows[torch.randperm(len(rows), generator=generator)]


def eval_batches(dataset: ImageDataset, batch_size: int, workers: int = 0) -> Iterator[Batch]:
    """Yield every image once, in order, for feature extraction; those that cannot be decoded are left out."""
    positions = torch.arange(len(dataset))
    return _batches(dataset, list(torch.split(positions, batch_size)), workers, replace=False)


def _batches(dataset: ImageDataset, requests: Iterable[Tensor], workers: int, replace: bool) -> Iterator[Batch]:
    reads: Iterator[_Read | UserError]
    reading: Reading | None = None
    if dataset.resident or workers == 0:
        reads = (_read(dataset, positions, replace) for positions in requests)
    elif dataset.cached:
        reads = _read_ahead(dataset, requests, replace)
    else:
        before = set[Any](multiprocessing.active_children())
        reading = Reading(dataset, workers)
        reads = iter(
            DataLoader(
                _Reader(dataset, replace),
                batch_size=None,
                # One item is one batch, so that workers return whole batches in order. Arrays, not tensors: a thread of
                # this process would share a tensor, under a lock that workers forked meanwhile would wait for forever.
                sampler=(positions.numpy() for positions in requests),
                num_workers=workers,
                worker_init_fn=partial(_begin, reading),
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # else starting the workers would draw from the global generator
            )
        )
        started = started_since(before)
        _at_work.update(started)
        reading.watch(started)
    for read in _told(reads, reading):
        if isinstance(read, UserError):
            raise read
        positions, images, undecodable = read
        # Workers are other processes: what they found is reported to the dataset here, where it is logged and counted
        dataset.report_undecodable(undecodable)
        if replace and not len(positions):
            raise UserError(f"No image of {dataset.name} can be decoded; look at the files in data.root.")
        if len(positions):
            labels = None if dataset.labels is None else dataset.labels[positions]
            yield Batch(images.pixels, labels, dataset.index[positions], images.size)


class _Reader(Dataset[_Read | UserError]):
    """A dataset whose items are batches and whose keys are arrays of their positions."""

    def __init__(self, dataset: ImageDataset, replace: bool) -> None:
        self.dataset, self.replace = dataset, replace

    def __getitem__(self, positions: Any) -> _Read | UserError:
        try:
            return _read(self.dataset, torch.from_numpy(positions), self.replace)
        except UserError as error:
            return error  # raised in a worker it would arrive wrapped in a traceback


def _told(reads: Iterator[_Read | UserError], reading: Reading | None) -> Iterator[_Read | UserError]:
    try:
        yield from reads
    except (RuntimeError, EOFError, ConnectionError) as error:
        told = crash_of(error, reading)
        if told is None:
            raise
        raise told from error


def _begin(reading: Reading, worker: int) -> None:
    reading.begin(worker)
    _outlive_a_signal()


def _outlive_a_signal() -> None:
    """Let a worker read on when its whole process group is asked to stop: the training still takes its step and saves.

    Whoever trains ends its workers. The second SIGTERM ends a worker by itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


_at_work: weakref.WeakSet[Any] = weakref.WeakSet()  # the workers of this process


@atexit.register
def _end_workers() -> None:
    """End what still waits for requests when this process ends: multiprocessing sends one SIGTERM and waits forever."""
    for worker in _at_work & set(multiprocessing.active_children()):
        worker.kill()


def _read_ahead(dataset: ImageDataset, requests: Iterable[Tensor], replace: bool) -> Iterator[_Read]:
    """Read in a thread, a few batches ahead: copying pixels from a mapped file runs outside Python's lock."""
    found: queue.Queue[_Read | BaseException | None] = queue.Queue(READ_AHEAD)
    stop = threading.Event()

    def put(item: _Read | BaseException | None) -> None:
        while not stop.is_set():
            try:
                found.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for request in requests:
                positions, images, undecodable = _read(dataset, request, replace)
                pixels = images.pixels.pin_memory() if torch.cuda.is_available() else images.pixels
                put((positions, Images(pixels, images.size), undecodable))
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=work, name="read-ahead", daemon=True).start()
    try:
        while (item := found.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()


def _read(dataset: ImageDataset, positions: Tensor, replace: bool) -> _Read:
    image, decoded, size = dataset.read_decodable(positions)
    found = Images(image, size)
    if decoded.all():
        return positions, found, positions[:0]
    undecodable = [positions[~decoded]]
    images = unpack(found)
    if replace:
        positions = positions.clone()
        for slot in (~decoded).nonzero().flatten().tolist():
            for step in range(1, len(dataset)):
                candidate = (positions[slot : slot + 1] + step) % len(dataset)
                other = dataset.read_decodable(candidate)
                if other.decoded.all():
                    (images[slot],) = unpack(Images(other.image, other.size))
                    positions[slot], decoded[slot] = candidate[0], True
                    break
                undecodable.append(candidate)
    left = [images[slot] for slot in decoded.nonzero().flatten().tolist()]
    return positions[decoded], pack(left) if left else Images(image[:0]), torch.unique(torch.cat(undecodable))
