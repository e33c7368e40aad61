"""Whose signals are heard, and for how long."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time

import pytest

from selfsup.engine.stop import Interrupted, StopSignal


def test_the_signals_of_a_forked_worker_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is told to end must not be taken for a person who presses Ctrl-C."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with StopSignal() as stop:
        stop.training = True
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
        assert stop.received == signal.SIGINT
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
