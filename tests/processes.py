"""Processes of their own for tests, forked from one that has imported what takes seconds to import."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Starts a process in a hundredth of a second, where an interpreter needs seconds for its imports.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["torch.distributed.fsdp", "torch.nn.parallel", "selfsup.engine.training", "selfsup.engine.evaluation", "faiss"]
)


@dataclass(frozen=True)
class Done:
    """How a process ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


class Running:
    """A function that runs in a process, where it may read ``sys.argv`` and write to its own standard output.

    Args:
        function: At the top of a module that can be imported; what it returns or exits with is the exit code.
        words: Its argument, and ``sys.argv`` behind a first word.
        folder: The folder that it runs in, where ``NAME.out`` and ``NAME.err`` take what it says.
        name: Of these files.
        environment: Variables beside those of this process; None takes one away.
        leads: Whether the process leads a group of its own, as a command in a terminal does.
    """

    def __init__(
        self,
        function: Callable[[list[str]], Any],
        words: list[str],
        folder: Path,
        name: str = "said",
        environment: Mapping[str, str | None] | None = None,
        leads: bool = False,
    ) -> None:
        variables = {k: v for k, v in {**os.environ, **(environment or {})}.items() if v is not None}
        self.said = [folder / f".{name}.out", folder / f".{name}.err"]
        arguments = (function, words, folder, self.said, variables, leads)
        self.process = FORKED.Process(target=_become, args=arguments)
        self.process.start()
        self.pid: int = self.process.pid  # type: ignore[assignment]

    def alive(self) -> bool:
        return self.process.is_alive()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 240.0) -> Done:
        """Wait for its end; one that takes longer is killed, and fails."""
        self.process.join(timeout)
        if self.alive():
            self.process.kill()
            self.process.join()
        out, err = (path.read_text() if path.exists() else "" for path in self.said)
        return Done(self.process.exitcode, out, err)  # type: ignore[arg-type]


def command(words: list[str]) -> int:
    """Run ``selfsup`` with these words, as ``python -m selfsup.cli`` does."""
    from selfsup.cli import main

    return main(words)


def run(words: list[str], folder: Path, **more: Any) -> Done:
    """Run ``selfsup`` with these words in a process of its own, to its end."""
    return Running(command, words, folder, **more).wait()


def run_ranks(size: int, words: list[str], folder: Path, environment: Mapping[str, str | None]) -> list[Done]:
    """Run ``selfsup`` in several processes, with what a launcher says to each; return how they ended, in rank order."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "NODE_RANK": "0"}
    ranks = [
        Running(command, words, folder, f"rank{rank}", {**environment, **world, "LOCAL_RANK": str(rank)})
        for rank in range(size)
    ]
    deadline = time.monotonic() + 240
    while any(rank.alive() for rank in ranks) and time.monotonic() < deadline:
        if any(rank.process.exitcode not in (None, 0) for rank in ranks):
            deadline = min(deadline, time.monotonic() + 20)  # the others may wait for ever for one that failed
        time.sleep(0.05)
    return [rank.wait(0) for rank in ranks]


def wait_for(condition: Callable[[], Any], running: Running, timeout: float = 120.0) -> None:
    """Wait until a condition holds; what runs must not end before."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert running.alive(), running.wait()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _become(
    function: Callable[[list[str]], Any],
    words: list[str],
    folder: Path,
    said: list[Path],
    variables: dict[str, str],
    leads: bool,
) -> None:
    import torch
    from lightning_utilities.core.rank_zero import rank_zero_only

    if leads:
        os.setsid()
    for number, path in zip((1, 2), said, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.argv = ["selfsup", *words]
    rank_zero_only.rank = int(variables.get("LOCAL_RANK", 0))  # which Lightning reads when it is imported
    torch.set_num_threads(1)
    sys.exit(function(words))
