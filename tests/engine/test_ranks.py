"""A process of several that loses another one says so in a sentence, and does not stay behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from pytorch_lightning.utilities.exceptions import SIGTERMException

from selfsup.engine.ranks import FIRST, together
from selfsup.engine.stop import Interrupted
from selfsup.errors import UserError


@pytest.mark.parametrize(
    "error",
    [
        dist.DistNetworkError("Broken pipe"),
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:42"),
    ],
)
def test_a_lost_process_is_a_sentence(error: RuntimeError) -> None:
    with pytest.raises(UserError, match=r"rank 1 of 2 has lost another process .* resume="), together(1, 2):
        raise error


def test_other_faults_stay_what_they_are() -> None:
    for size in (1, 2):
        with pytest.raises(RuntimeError, match="shapes"), together(0, size):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="Broken pipe"), together(0, 1):
        raise RuntimeError("Broken pipe")
    assert FIRST not in os.environ


def test_a_sigterm_that_lightning_hears_just_before_the_first_step_is_a_sentence() -> None:
    """It tells the other processes by an exception of its own, which would be a traceback there."""
    with pytest.raises(Interrupted, match="before the first step") as stopped, together(1, 2):
        raise SIGTERMException
    assert stopped.value.signal == signal.SIGTERM


def test_who_waits_for_all_to_join_ends_with_the_first_process(tmp_path: Path) -> None:
    """Killed, it tells nobody: neither a signal nor a closed connection reaches the others."""
    ranks = "import time\nfrom selfsup.engine.ranks import together\n"
    second = f"{ranks}with together(1, 2): print('joins', flush=True); time.sleep(300)"
    first = (
        f"import subprocess, sys\n{ranks}"
        f"with together(0, 2):\n    print(subprocess.Popen([sys.executable, '-c', {second!r}]).pid, flush=True)\n"
        "    time.sleep(300)"
    )
    said = tmp_path / "said"
    with said.open("w") as out:
        process = subprocess.Popen([sys.executable, "-c", first], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 120
        while "joins" not in said.read_text():
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    other = int(said.read_text().split()[0])
    while _alive(other):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "the first process has ended" in said.read_text()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
