"""How many processes and threads read images."""

from __future__ import annotations

import os

from selfsup.data.base import DataConfig

MOST_WORKERS = 16  # beyond it a network's step is the slower part, and memory goes into batches that wait


def usable_cores() -> int:
    """Return how many cores this process may run on, which a batch system can make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_count(config: DataConfig, processes: int = 1) -> int:
    """Return ``data.workers``, or where it is null the cores that each training process of this machine has.

    Args:
        processes: Training processes on this machine, which share its cores.
    """
    if config.workers is not None:
        return config.workers
    return min(MOST_WORKERS, max(1, usable_cores() // processes))
