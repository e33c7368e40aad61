"""The command itself, on two processes through Lightning's DDP, trains what it trains on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import processes
import torch
from tiny import tiny

from selfsup.checkpoint import read_checkpoint

TWO = ["trainer.devices=2", "trainer.strategy=ddp"]


def words(name: str, *settings: str, method: str = "moco") -> list[str]:
    # in float64: BatchNorm over a few images magnifies what float32 rounds differently for other numbers of images
    own = [*tiny(method), "trainer.precision=64-true"]
    return ["train", *own, f"run_dir={name}", *settings]


def apart(folder: Path) -> dict[str, str]:
    """Keep from this process, which opens the run, the files that are given to it by --import."""
    return {"XDG_STATE_HOME": str(folder / "state")}


def run(folder: Path, name: str, *settings: str, method: str = "moco", ranks: int = 1) -> dict[str, torch.Tensor]:
    """Train in one process, or in several that have been told their ranks, as a cluster does."""
    own = words(name, *settings, method=method)
    if ranks == 1:
        done = [processes.run(own, folder, environment=apart(folder))]
    else:
        done = processes.run_ranks(ranks, own, folder, apart(folder))
    assert [process.returncode for process in done] == [0] * ranks, done[-1].stderr + done[0].stderr
    return state(folder / name)


def launched(folder: Path, name: str, launcher: list[str], *settings: str) -> dict[str, torch.Tensor]:
    """Train with a command that starts the second process itself."""
    command = [sys.executable, *launcher, "-m", "selfsup.cli", *words(name, *settings)]
    own = {**os.environ, **apart(folder)}
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return state(folder / name)


def state(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = read_checkpoint(folder)["state_dict"]
    return found


def test_two_devices_train_what_one_does_whoever_starts_them(tmp_path: Path) -> None:
    one = run(tmp_path, "one")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    assert_equal_but_for_statistics(one, launched(tmp_path, "lightning", [], *TWO))
    assert_equal_but_for_statistics(one, launched(tmp_path, "torchrun", torchrun, *TWO))


def assert_equal_but_for_statistics(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        if "running_" in key:  # each rank has the statistics of its own share
            continue
        torch.testing.assert_close(two[key], value, rtol=1e-10, atol=1e-11, msg=key)


def test_two_devices_in_chunks_train_what_one_does(tmp_path: Path) -> None:
    """Chunks of 4 are the same images on one device and on two, so that BatchNorm agrees; SupCon's head has none."""
    one = run(tmp_path, "one", "trainer.chunk_size=4", method="supcon")
    saving = ["trainer.chunk_size=4", "trainer.activation_checkpointing=true"]
    two = run(tmp_path, "two", *saving, *TWO, method="supcon", ranks=2)
    assert_equal_but_for_statistics(one, two)
