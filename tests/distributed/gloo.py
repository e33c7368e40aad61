"""Several processes on the CPU that talk over gloo, for tests."""

from __future__ import annotations

import datetime
import io
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from composed import compose_once
from processes import FORKED


class Ranks:
    """Processes that stay up and run functions at the same time, rank by rank.

    One set serves all tests, as meeting takes a while. After an error they are out of step, and are started
    anew for the next call.

    Args:
        size: Number of processes.
        folder: Where they find each other.
        timeout: Seconds that a call may take.
    """

    def __init__(self, size: int, folder: Path, timeout: float = 60.0) -> None:
        self.size, self.folder, self.timeout = size, folder, timeout
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._starts = 0

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call ``function(rank, *args)`` in every process and return the results in rank order.

        The function lives at the top of a module. Results hold tensors and plain values, without gradients.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, args))
        results, errors = [], []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(self.timeout):
                errors.append(f"rank {rank} gave no answer in {self.timeout} s")
                continue
            try:
                result, error = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)
            except EOFError:
                result, error = None, "it ended"
            results.append(result)
            if error:
                errors.append(f"rank {rank}: {error}")
        if errors:
            self.stop()
            raise RuntimeError("\n".join(errors))
        return results

    def stop(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()  # the end of the pipe is the end of the loop in the process
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        self._starts += 1
        meeting_point = f"file://{self.folder / f'meeting_point_{self._starts}'}"
        for rank in range(self.size):
            ours, theirs = FORKED.Pipe()
            process = FORKED.Process(
                target=_serve, args=(rank, self.size, meeting_point, self.timeout / 2, theirs), daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)


def _serve(rank: int, size: int, meeting_point: str, timeout: float, pipe: Connection) -> None:
    torch.set_num_threads(1)
    compose_once()
    dist.init_process_group(
        "gloo",
        init_method=meeting_point,
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=timeout),
    )
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            break
        torch.manual_seed(0)
        answer: tuple[Any, str | None]
        try:
            answer = function(rank, *args), None
        except Exception:
            answer = None, traceback.format_exc()
        buffer = io.BytesIO()
        torch.save(answer, buffer)
        pipe.send_bytes(buffer.getvalue())
    dist.destroy_process_group()
