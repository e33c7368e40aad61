"""A rank that dies ends the training: with its own words on the screen, soon, and a checkpoint to go on from."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from processes import Done, Running, wait_for
from tiny import TINY, TINY_METHOD

from selfsup.checkpoint import read_checkpoint
from selfsup.eval.results import read_results

STEPS, DIES_AT = 8, 6
SOON = 60.0  # seconds

DIES = f"""
import os, signal
from selfsup.methods import Method

usual, seen = Method.training_step, 0


def step(self, *arguments):
    global seen
    seen += 1
    if seen == {DIES_AT} and "DIES" in os.environ and os.environ["RANK_THAT_DIES"] == os.environ.get("LOCAL_RANK"):
        open(os.environ["DIES"], "w").close()
        if os.environ["HOW"] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ArithmeticError("this rank dies here")
    return usual(self, *arguments)


Method.training_step = step
"""


def train(words: list[str]) -> int:
    """Run the command; Lightning forks the second rank, which saves the seconds of its imports."""
    import sys
    import types

    from pytorch_lightning.strategies.launchers import subprocess_script

    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "trust"))
    from kills import SecondRank

    from selfsup.cli import main

    sys.modules["__main__"].__spec__ = None
    subprocess_script.subprocess = types.SimpleNamespace(Popen=SecondRank().start)  # type: ignore[assignment]
    return main(words)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", ["killed", "raises"])
def test_a_rank_that_dies_ends_the_training(rank: int, how: str, tmp_path: Path) -> None:
    run, mark = tmp_path / "run", tmp_path / "mark"
    (tmp_path / "dies.py").write_text(DIES)
    settings = ["method=byol", *TINY_METHOD["byol"], *TINY, "trainer.devices=2", "trainer.strategy=ddp"]
    settings = [word for word in settings if word != "trainer.devices=1"]
    words = ["train", "--import", str(tmp_path / "dies.py"), *settings, "trainer.checkpoint_every_steps=1"]
    environment = {"DIES": str(mark), "RANK_THAT_DIES": str(rank), "HOW": how, "LOCAL_RANK": None}
    environment["XDG_STATE_HOME"] = str(tmp_path / "state")
    running = Running(
        train, [*words, f"run_dir={run}", "online.every_epochs=0"], tmp_path, environment=environment, leads=True
    )
    wait_for(mark.exists, running, 240)
    began = time.monotonic()
    running.wait(SOON)
    while group_lives(running.pid):
        assert time.monotonic() - began < SOON
        time.sleep(0.05)
    done = running.wait(0)  # the other one may have spoken after the first
    assert done.returncode not in (0, None), done
    assert_says_why(done, rank, how)
    # what was saved before is there to go on from, and the last step is that before the death
    assert read_checkpoint(run)["global_step"] == DIES_AT - 1
    again = Running(train, ["train", f"resume={run}"], tmp_path, "again", {**environment, "DIES": None}).wait()
    assert again.returncode == 0, again.stderr
    assert read_checkpoint(run)["global_step"] == STEPS
    assert [record["protocol"] for record in read_results(run)] == ["training"]


def assert_says_why(done: Done, rank: int, how: str) -> None:
    if how == "raises":
        assert done.stderr.count("ArithmeticError: this rank dies here") == 1
        assert done.stderr.count("Traceback (most recent call last)") == 1, done.stderr  # the other one has none
    else:
        assert "Traceback" not in done.stderr
    if rank == 1:  # killed, the first one ends before it can speak
        return
    assert "rank 1 of 2 has lost another process" in done.stderr or "the first process has ended" in done.stderr


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
