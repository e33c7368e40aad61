"""A loader's worker that ends by itself is told with the file that it was reading."""

from __future__ import annotations

import multiprocessing
import re
import signal
import threading
import weakref
from collections.abc import Callable, Iterable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import get_worker_info

from selfsup.data.base import ImageDataset
from selfsup.data.encoded import EncodedDataset
from selfsup.errors import UserError
from selfsup.shortage import ShortageError

_at_work: weakref.WeakSet[Reading] = weakref.WeakSet()


class Reading:
    """What the workers of one loader are at, in memory that they share with the process that trains.

    Args:
        dataset: What they read.
        workers: Their number.
    """

    def __init__(self, dataset: ImageDataset, workers: int) -> None:
        self.dataset, self.workers = dataset, workers
        self.rows = multiprocessing.RawArray("q", [-1] * workers)  # no tensor: a thread of this process shares those
        self.processes: list[BaseProcess] = []

    def begin(self, worker: int) -> None:
        """Let the dataset of this worker say what it reads; called in the worker."""
        info = get_worker_info()
        assert info is not None
        reader: Any = info.dataset
        reader.dataset.reading = torch.frombuffer(self.rows, dtype=torch.int64)[worker : worker + 1]

    def watch(self, processes: Iterable[BaseProcess]) -> None:
        """Tell of these workers, in the order in which they were started, should one crash."""
        self.processes = list(processes)
        _at_work.add(self)
        heard = signal.getsignal(signal.SIGCHLD)
        if threading.current_thread() is threading.main_thread() and callable(heard) and heard not in _telling:
            telling = _tell(heard)
            _telling.add(telling)
            signal.signal(signal.SIGCHLD, telling)

    def crash(self, pids: set[int]) -> UserError | None:
        """Return what to say of a worker that has crashed; None where none of these processes is one."""
        for worker, process in enumerate(self.processes):
            code = process.exitcode if process.pid in pids else None
            if code is None or code >= 0:
                continue
            row = self.rows[worker]
            at = "" if row < 0 else f" while it read {self._place(row)}"
            if code == -signal.SIGKILL:
                return ShortageError(
                    f"A worker that reads images was killed{at}, as is done where memory runs out: lower data.workers "
                    f"({self.workers}), batch_size or data.image_size."
                )
            shared = ", or there is too little shared memory (/dev/shm)" if code == -signal.SIGBUS else ""
            return UserError(
                f"A worker that reads images crashed{at} (signal {-code}): take that file out{shared}; with "
                "data.workers=0 the crash is that of the whole process."
            )
        return None

    def _place(self, row: int) -> str:
        if isinstance(self.dataset, EncodedDataset):
            return str(self.dataset.root / self.dataset.row_name(row))
        return f"image {row} of {self.dataset.name} {self.dataset.split}"


def crash_of(error: RuntimeError | EOFError | ConnectionError, own: Reading | None = None) -> UserError | None:
    """Return what to say of an error of torch's loader about a worker that has ended; None of other errors.

    One that ends while it hands over a batch leaves an end of file or a broken connection, and no word of torch's.

    Args:
        error: What was raised.
        own: Of the loader that raised it, whose workers an error without a word is about.
    """
    if not isinstance(error, RuntimeError):
        if own is None or not own.processes:
            return None
        ended = wait([process.sentinel for process in own.processes], timeout=10)
        for process in own.processes:
            if process.sentinel in ended:  # it has let go of its files, and may not be gone yet
                process.join(10)
        return own.crash({process.pid for process in own.processes if process.pid is not None})
    pids = set[int]()
    if said := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)", str(error)):
        pids = set(map(int, re.findall(r"\d+", said[1])))
    return next((found for reading in list(_at_work) if (found := reading.crash(pids)) is not None), None)


_telling: set[Callable[..., Any]] = set()


def _tell(heard: Callable[..., Any]) -> Callable[..., Any]:
    """Return torch's handler, which raises wherever the process is when a worker ends, with our words."""

    def handler(number: int, frame: Any) -> None:
        try:
            heard(number, frame)
        except RuntimeError as error:
            told = crash_of(error)
            if told is None:
                raise
            raise told from error

    return handler


def started_since(before: set[BaseProcess]) -> list[BaseProcess]:
    """Return the child processes that are new, in the order in which they were started."""
    return sorted(set(multiprocessing.active_children()) - before, key=lambda process: process.pid or 0)
