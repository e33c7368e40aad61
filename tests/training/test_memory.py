"""Memory that a step frees is there for the next step."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from selfsup.engine import training
from selfsup.engine.training import train

PROGRAM = """
import resource, torch
from selfsup.engine.environment import keep_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = sum(faults() for _ in range(10))
keep_memory()
then = sum(faults() for _ in range(10))
print(first, then)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_the_kernel_is_seldom_asked() -> None:
    """64 MiB are thousands of pages, each of which is a fault when it is new. The place may move once or twice."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
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
