"""What a process of a training does when another one is gone: it says so, and ends too."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

import torch.distributed as dist
from pytorch_lightning.utilities.exceptions import SIGTERMException

from selfsup.engine.stop import Interrupted
from selfsup.errors import UserError, reason_of

FIRST = "SELFSUP_FIRST_PROCESS"  # set for the processes that the first one starts: its number
LOOK = 0.5  # seconds
#: What gloo says, in errors of no type of their own, when a process does not answer any more.
LOST = ("closed by peer", "connection reset", "broken pipe", "timed out waiting", "socket timeout")


@contextlib.contextmanager
def together(rank: int, world_size: int) -> Iterator[None]:
    """Train as one of several processes inside.

    One that the first process has started ends when that has ended: while it still waits for all to join, nothing else
    would tell it.

    Raises:
        UserError: Another process has ended, where the collectives would raise errors of their own.
        Interrupted: The first one got SIGTERM just before the first step, when Lightning hears it and tells the others.
    """
    if world_size == 1:
        yield
        return
    first = os.environ.get(FIRST)
    ended = threading.Event()
    if rank == 0:
        os.environ[FIRST] = str(os.getpid())
    elif first is not None:
        threading.Thread(target=_watch, args=(rank, int(first), ended), name="watches rank 0", daemon=True).start()
    try:
        yield
    except SIGTERMException:
        raise Interrupted(signal.SIGTERM, None) from None
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise UserError(
            f"rank {rank} of {world_size} has lost another process of this training ({reason_of(error)}); what that "
            "one said last is the cause, and resume= goes on from the last checkpoint."
        ) from error
    finally:
        ended.set()
        if rank == 0:
            os.environ.pop(FIRST, None)


def _is_lost(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(words in str(error).lower() for words in LOST)


def _watch(rank: int, first: int, ended: threading.Event) -> None:
    while not ended.wait(LOOK):
        if os.getppid() != first:
            with contextlib.suppress(OSError, ValueError):
                print(f"rank {rank}: the first process has ended, and so does this one.", file=sys.stderr, flush=True)
            os._exit(1)
