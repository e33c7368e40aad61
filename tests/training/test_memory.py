"""Memory that a step frees is there for the next step."""

from __future__ import annotations

import platform
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
import torch

from selfsup.engine import training
from selfsup.engine.environment import keep_memory
from selfsup.engine.training import train


def _count_faults(words: list[str]) -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)  # 64 MiB, freed at once
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    first = sum(faults() for _ in range(10))
    keep_memory()
    print(first, sum(faults() for _ in range(10)))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_the_kernel_is_seldom_asked(tmp_path: Path) -> None:
    """64 MiB are thousands of pages, each of which is a fault when it is new. The place may move once or twice."""
    done = processes.Running(_count_faults, [], tmp_path).wait()
    default, kept = map(int, done.stdout.split())
    assert default > 10 * 2**26 / 2**16  # pages of at most 64 KiB
    assert kept < default / 2


@pytest.mark.parametrize(
    ("setting", "kept"),
    [
        ("trainer.chunk_size=null", True),
        ("trainer.chunk_size=8", False),
        ("trainer.activation_checkpointing=true", False),
    ],
)
def test_a_training_that_saves_memory_gives_it_back(
    setting: str, kept: bool, tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(training, "keep_memory", lambda: calls.append(None))
    train(tiny_config("simclr", setting, "trainer.max_epochs=1"))
    assert bool(calls) is kept
