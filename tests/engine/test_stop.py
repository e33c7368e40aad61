"""Whose signals are heard, and for how long."""

from __future__ import annotations

import datetime
import io
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from processes import Running, wait_for

from selfsup.engine import stop
from selfsup.engine.stop import Interrupted, StopSignal


def test_the_signals_of_a_forked_worker_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is told to end must not be taken for a person who presses Ctrl-C."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with StopSignal() as listens:
        listens.training = True
        worker = os.fork()
        if worker == 0:
            signal.signal(signal.SIGTERM, lambda number, frame: None)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        os.waitpid(worker, 0)
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 60
        while "\n" not in stream.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert listens.received == signal.SIGINT
    assert stream.getvalue() == "stopping after this step; press Ctrl-C again to stop at once\n"


def test_afterwards_all_is_as_before() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignal():
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "answers signals"]
    thread.join(60)
    assert not thread.is_alive()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert signal.set_wakeup_fd(-1) == -1


def test_before_the_first_step_a_signal_ends_the_run_where_it_is() -> None:
    def interrupted() -> None:
        with StopSignal():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    with pytest.raises(Interrupted, match="before the first step"):
        interrupted()


def wait_for_a_process_that_never_comes(words: list[str]) -> None:
    with StopSignal():
        Path(words[0]).touch()
        dist.TCPStore("127.0.0.1", 0, 2, is_master=True, timeout=datetime.timedelta(seconds=120))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_waits_for_other_processes_ends_too(number: int, tmp_path: Path) -> None:
    """Waiting is one operation, in which Python does not look at signals."""
    waits = tmp_path / "waits"
    running = Running(wait_for_a_process_that_never_comes, [str(waits)], tmp_path)
    wait_for(waits.exists, running)
    time.sleep(0.2)
    running.signal(number)
    done = running.wait(60)
    assert done.returncode == 128 + number
    assert done.stderr.startswith("Stopped before the first step")
    assert "Traceback" not in done.stderr


class Deleted:
    """Gets a signal while it is deleted, where Python ignores what is raised."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)
        sum(range(3))


def delete_and_wait(words: list[str]) -> None:
    stop.GRACE = 0.3
    with StopSignal() as heard:
        Deleted(int(words[0]))
        heard.training = words[1] == "training"
        time.sleep(1 if heard.training else 60)
        print(heard.received)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_while_an_object_is_deleted_ends_the_run(number: int, tmp_path: Path) -> None:
    done = Running(delete_and_wait, [str(int(number)), "waiting"], tmp_path).wait(60)
    assert done.returncode == 128 + number
    assert done.stderr == f"{Interrupted(number, None)}\n"


def test_a_signal_that_comes_while_an_object_is_deleted_stops_a_training_after_its_step(tmp_path: Path) -> None:
    done = Running(delete_and_wait, [str(int(signal.SIGTERM)), "training"], tmp_path).wait(60)
    assert (done.returncode, done.stdout) == (0, f"{int(signal.SIGTERM)}\n")
    assert done.stderr == ""


def test_other_errors_of_deleted_objects_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    hook = lambda told: shown.append(told.exc_value)  # noqa: E731
    monkeypatch.setattr(sys, "unraisablehook", hook)

    class Wrong:
        def __del__(self) -> None:
            raise KeyError("x")

    with StopSignal():
        Wrong()
        assert sys.unraisablehook is not hook
    assert [type(error) for error in shown] == [KeyError]
    assert sys.unraisablehook is hook
