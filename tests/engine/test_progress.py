"""A training can be watched, by a terminal and by a file, and trains the same; Ctrl-C is answered within a step."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from states import assert_same_state

from selfsup.engine import progress
from selfsup.engine.arrival import Arrival
from selfsup.engine.log import RunLog
from selfsup.engine.progress import Progress
from selfsup.engine.stop import Interrupted
from selfsup.engine.training import train
from selfsup.methods import Method

Config = Callable[..., Any]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Let the errors of this test go to a terminal; no fixture can, as pytest puts its own stream there afterwards."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "TICK", 0.01)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    return stream


def in_step(monkeypatch: pytest.MonkeyPatch, step: int, do: Callable[[], None]) -> None:
    """Do something in the middle of a step."""
    original = Method.training_step

    def training_step(self: Method, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == step:
            do()
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Method, "training_step", training_step)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_lines_where_there_is_no_terminal_and_the_same_weights(
    tiny_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = train(tiny_config("byol", run="quiet"))
    said = capsys.readouterr().out
    assert "epoch 1/2" not in said
    run = train(tiny_config("byol", "trainer.progress=true"))
    out, err = capsys.readouterr()
    assert_same_state(quiet, run)
    assert (quiet / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    assert "\r" not in out + err
    values = r"loss \d\S*, learning rate \S+, online kNN \d+\.\d%, effective rank \d+\.\d, [\d,]+ images/s"
    assert re.search(rf"^epoch 1/2: {values}, \d+ s left$", out, re.MULTILINE)
    assert re.search(rf"^epoch 2/2: {values}$", out, re.MULTILINE)
    *_, trained, folder, command = out.splitlines()
    assert trained.startswith("Trained 2 epochs in ")
    assert (folder, command) == (f"run folder: {run}", f"next: selfsup evaluate {run}")
    for kept in (quiet, run):
        log = (kept / "train.log").read_text()
        for line in ("byol on ", "epoch 1/2: loss ", "epoch 2/2: loss ", "Trained 2 epochs", "next: selfsup evaluate"):
            assert line in log


def test_a_bar_moves_while_a_step_is_slow_and_lines_stand_alone(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = terminal(monkeypatch)

    def during() -> None:
        before = len(screen.getvalue())
        wait_for(lambda: screen.getvalue()[before:].count("\r") > 3)
        print("a word of somebody's own", file=sys.stderr)

    in_step(monkeypatch, 3, during)
    train(tiny_config("simclr", "trainer.progress=true"))
    shown = screen.getvalue()
    frames = [frame for frame in shown.split("\r") if "|" in frame]
    assert any(re.match(r"epoch 1/2 \|.*\| 3/8 \d+:\d\d<\d+:\d\d loss \S+ lr \S+ [\d,]+ img/s", f) for f in frames)
    assert any("kNN" in frame and "rank" in frame for frame in frames)
    (line,) = [line for line in shown.split("\n") if "a word" in line]
    assert line.rpartition("\r")[2] == "a word of somebody's own"  # nothing but what was cleared stands before it
    assert not shown.rpartition("\r")[2].strip()  # and no bar is left


def test_a_long_training_is_announced_with_what_helps(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LONG", 0.0)
    monkeypatch.setattr(progress, "SOON", 0.0)
    run = train(tiny_config("simclr", "trainer.progress=true", "trainer.max_epochs=1"))
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("about ")]
    assert "at this speed" in line
    assert "trainer.max_epochs=1" in line
    assert f"selfsup doctor --config {run}/config.yaml" in out


def test_ctrl_c_is_answered_within_the_step(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)

    def during() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: "stopping after this step; press Ctrl-C again to stop at once\n" in screen.getvalue())

    in_step(monkeypatch, 1, during)
    config = tiny_config("simclr", "trainer.progress=true")
    with pytest.raises(Interrupted, match="everything up to here is saved") as stopped:
        train(config)
    assert stopped.value.checkpoint == Path(config.run_dir) / "checkpoints" / "last.ckpt"
    assert "stopping after this step" in (Path(config.run_dir) / "train.log").read_text()
    assert all(thread.name != "progress" for thread in threading.enumerate())


def test_a_second_ctrl_c_ends_the_step(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def during() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        raise AssertionError("the second signal was not acted on")

    in_step(monkeypatch, 5, during)
    config, before = tiny_config(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"Stopped at once, .* from the last checkpoint") as stopped:
        train(config)
    assert stopped.value.checkpoint is not None
    assert signal.getsignal(signal.SIGTERM) == before  # Lightning too puts back what it found


def test_a_rank_that_waits_says_for_what(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(progress, "MINUTE", 0.05)
    monkeypatch.setattr(progress, "TICK", 0.01)
    monkeypatch.setattr(sys, "__stderr__", stream)
    with RunLog() as log:
        log.keep(tmp_path, rank=1)
        shown = Progress(tiny_config(), tmp_path, 4, log)
        with shown.watching(rank=1, world_size=2):
            wait_for(lambda: "start and join" in stream.getvalue())
            shown.begin("evaluation")
            wait_for(lambda: "waits for rank 0, which evaluates" in stream.getvalue())
    assert stream.getvalue().startswith("rank 1 of 2: waits for all 2 processes to start and join")
    assert "rank 1: waits for rank 0, which evaluates the features" in (tmp_path / "train.log").read_text()


def test_a_number_arrives_without_being_asked_for() -> None:
    arrival = Arrival(torch.device("cpu"))
    assert arrival.value is None
    arrival.send(torch.tensor(2.5, dtype=torch.float64, requires_grad=True))
    assert arrival.value == 2.5
    arrival.send(torch.tensor(3.0, dtype=torch.bfloat16))
    assert arrival.value == 3.0
