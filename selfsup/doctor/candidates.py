"""Settings that may be worth a trial on this machine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from selfsup.config import TrainConfig
from selfsup.data import ResidentDataset, Splits
from selfsup.data.workers import worker_count
from selfsup.doctor.clock import PHASES
from selfsup.ragged import Images, unpack

NETWORKS = ("forward", "momentum forward", "backward")


@dataclass(frozen=True)
class Candidate:
    """A setting that may be worth a trial.

    Attributes:
        name: As on the command line.
        touches: The phases that it can shorten; empty for what saves memory.
        threads: Threads of the CPU, where the setting is their number.
        resident: Whether the images come from memory.
        note: What else changes.
    """

    name: str
    touches: Sequence[str] = ()
    threads: int | None = None
    resident: bool = False
    note: str = ""


def candidates(config: TrainConfig, splits: Splits, device: torch.device, compiling: bool) -> Iterator[Candidate]:
    """Settings that can help this configuration on this machine."""
    data, trainer, cores = config.data, config.trainer, len(os.sched_getaffinity(0))
    if not splits.pretrain.resident:
        for workers in sorted({cores, 2 * cores} - {worker_count(data)}):
            yield Candidate(f"data.workers={workers}", ("data wait",))
        megabytes = _size_mb(splits)
        note = f"images in memory: {megabytes} MB"
        yield Candidate(f"data.resident_limit_mb={megabytes}", ("data wait",), resident=True, note=note)
    if compiling and not trainer.compile:
        yield Candidate("trainer.compile=true", NETWORKS)
    # torch has aborted where compiled code met another number of threads
    if device.type == "cpu" and not (compiling or trainer.compile):
        for threads in sorted({1, cores // 2, cores} - {0, torch.get_num_threads()}):
            yield Candidate(f"OMP_NUM_THREADS={threads}", ("views", *NETWORKS, "loss", "optimiser"), threads)
    if trainer.precision == "32-true" and _has_bfloat16(device):
        yield Candidate("trainer.precision=bf16-mixed", NETWORKS, note="other rounding")
    if not trainer.activation_checkpointing:
        yield Candidate("trainer.activation_checkpointing=true", note="for memory")
    if trainer.chunk_size is None:
        yield Candidate(f"trainer.chunk_size={max(2, config.batch_size // 4)}", note="for memory")
    rare = 10 * trainer.log_every_steps
    yield Candidate(f"trainer.log_every_steps={rare}", ("logging", "callbacks"), note="fewer rows in metrics.csv")
    yield Candidate(f"batch_size={2 * config.batch_size}", PHASES, note="trains another way")


def in_memory(splits: Splits, count: int) -> ResidentDataset:
    """Return the first training images as a source that keeps them in memory would hold them."""
    images = splits.pretrain
    positions = torch.arange(min(count, len(images)))
    image, _, size = images.read_decodable(positions)
    return ResidentDataset(
        image if size is None else unpack(Images(image, size)),
        None if images.labels is None else images.labels[positions],
        images.facts,
    )


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16; elsewhere it is emulated, many times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _size_mb(splits: Splits) -> int:
    """MiB of all images of a source in memory."""
    parts = [splits.pretrain, splits.holdout, *([splits.test] if splits.test is not None else [])]
    image = splits.pretrain.read_decodable(torch.zeros(1, dtype=torch.long))[0]
    return math.ceil(sum(map(len, parts)) * image.nbytes / 2**20) + 1
