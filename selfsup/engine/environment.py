"""What a training runs on: what is noted down of the machine, and what is set in the process."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import logging
import os
import platform
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from selfsup.config import TrainerConfig
from selfsup.eval.results import peak_memory_mb


def environment() -> dict[str, Any]:
    """Return what ``environment.json`` holds: the command, the machine and the versions of what computes."""
    packages = ("torch", "torchvision", "pytorch-lightning", "kornia", "timm", "faiss-gpu", "faiss-cpu", "numpy")
    versions = {}
    for name in ("selfsup", *packages):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "command": sys.argv,
        "started": now(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": versions,
        "commit": commit(),
    }


def commit(package: Path = Path(__file__).parents[1]) -> str | None:
    """Return the git commit of the code that runs, with ``-dirty`` behind it where files differ from that commit.

    None where the package is not run from a checkout of its own.
    """
    root = package.resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        # an environment inside somebody's repository is not this package's
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def now() -> str:
    """Return the present moment as ISO 8601, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def quieten() -> None:
    """Silence what Lightning says about choices that are made here on purpose."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        ".*num_workers.*",
        ".*lr_scheduler.step.*",
        ".*GPU available.*",
        ".*LeafSpec.*",
        ".*isinstance.treespec.*",
        ".*broadcast_buffers.*",
        ".*transfer_batch_to_device.*",
        ".*sync_dist=True.*",  # what is logged for the first rank is for all
        ".*smaller than the logging interval.*",  # rows are counted over epochs
        ".*Checkpoint directory .* exists and is not empty.*",  # it is the run's own
    ):
        warnings.filterwarnings("ignore", message=message)


def device_memory_mb(device: torch.device) -> float:
    """Return the most memory in MB (10⁶ bytes) so far: of tensors on a CUDA device, else of the process."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else peak_memory_mb()


def saves_memory(settings: TrainerConfig) -> bool:
    """Whether memory comes before time."""
    return settings.chunk_size is not None or settings.activation_checkpointing


def keep_memory() -> None:
    """Let glibc keep the memory that a step frees for the next step, instead of asking the kernel for it anew.

    Activations are a few large tensors, which by default come from the kernel, page by page and zeroed, in every step.
    It holds for the rest of the process. The price is memory: what is kept has holes between tensors of many sizes.
    Elsewhere (GPU memory has torch's own cache; other C libraries) nothing happens.
    """
    mmap_threshold, trim_threshold, never = -3, -1, 2**31 - 1
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, never)
