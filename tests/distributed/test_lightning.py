"""The command itself, on two processes through Lightning's DDP, trains what it trains on one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tiny import TINY, TINY_METHOD

from selfsup.checkpoint import read_checkpoint


def run(
    folder: Path, name: str, *settings: str, method: str = "moco", launch: Sequence[str] = ()
) -> dict[str, torch.Tensor]:
    # in float64: BatchNorm over a few images magnifies what float32 rounds differently for other numbers of images
    own = [f"method={method}", *TINY_METHOD.get(method, []), *TINY, "trainer.precision=64-true"]
    command = [sys.executable, *launch, "-m", "selfsup.cli", "train", *own, f"run_dir={name}", *settings]
    # this process, which opens the run, must not be one that has been given the files of its --import
    apart = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    done = subprocess.run(command, cwd=folder, env=apart, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    state: dict[str, torch.Tensor] = read_checkpoint(folder / name)["state_dict"]
    return state


def test_two_devices_train_what_one_does(tmp_path: Path) -> None:
    one = run(tmp_path, "one")
    two = run(tmp_path, "two", "trainer.devices=2", "trainer.strategy=ddp")
    assert_equal_but_for_statistics(one, two)


def assert_equal_but_for_statistics(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for key, value in one.items():
        if "running_" in key:  # each rank has the statistics of its own share
            continue
        torch.testing.assert_close(two[key], value, rtol=1e-10, atol=1e-11, msg=key)


def test_torchrun_trains_what_one_process_does(tmp_path: Path) -> None:
    one = run(tmp_path, "one")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    two = run(tmp_path, "two", "trainer.devices=2", "trainer.strategy=ddp", launch=launch)
    assert_equal_but_for_statistics(one, two)


def test_two_devices_in_chunks_train_what_one_does(tmp_path: Path) -> None:
    """Chunks of 4 are the same images on one device and on two, so that BatchNorm agrees; SupCon's head has none."""
    one = run(tmp_path, "one", "trainer.chunk_size=4", method="supcon")
    saving = ["trainer.chunk_size=4", "trainer.activation_checkpointing=true"]
    two = run(tmp_path, "two", *saving, "trainer.devices=2", "trainer.strategy=ddp", method="supcon")
    assert_equal_but_for_statistics(one, two)
