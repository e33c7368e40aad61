"""Ctrl-C and SIGTERM: answered at once, acted on where a state can be saved."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from selfsup.checkpoint import run_of
from selfsup.wording import command

END = b"\0"  # no number of a signal
GRACE = 3.0  # seconds that the running operation has before a signal ends the process that nothing is saved of


class Interrupted(BaseException):
    """The run was asked to stop; the message says how it goes on. No ``except Exception`` may take it for a fault.

    Attributes:
        signal: Number of the signal.
        checkpoint: What it left to go on from; None when there is none.
    """

    def __init__(self, number: int, checkpoint: Path | None, *, at_once: bool = False) -> None:
        first = "Stopped at once, in the middle of a step" if at_once else "Stopped before the first step"
        if checkpoint is None:
            message = f"{first}; start it again as before, with resume=auto if its folder is there already."
        else:
            saved = "go on from the last checkpoint" if at_once else "everything up to here is saved; go on"
            resume = command("train", f"resume={run_of(checkpoint)}")
            message = f"{first if at_once else 'Stopped'}; {saved} with: {resume}"
        super().__init__(message)
        self.signal = number
        self.checkpoint = checkpoint


_listening = 0  # trainings of this process that have a thread for signals


def _count(change: int) -> None:
    global _listening
    _listening += change


def _deafen() -> None:
    """Keep the signals of a forked worker from the thread of its parent."""
    if _listening:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_deafen)


class StopSignal:
    """Hears Ctrl-C and SIGTERM, as a context manager around a training.

    Before the first step a signal ends the run where it is. From then on, and until the ``with`` ends, it is only noted
    down: whoever trains asks ``received``. A second signal ends the run at once.

    Python looks at signals between two of its own operations. A backward pass, of many seconds on a CPU, is one of
    them, and so is waiting for the other processes of a training, which may never come. So a thread hears of a signal
    too: it answers on the screen while the operation runs, and ends the process where there is nothing to wait for.

    Attributes:
        received: Number of the first signal; 0 while there is none.
        training: Whether the first step has begun.
        checkpoint: What a run that is stopped at once goes on from, if it is there by then.
        after: What the run still does before it stops, for the answer.
        silent: Whether another process answers.
    """

    def __init__(self) -> None:
        self.received = 0
        self.training = False
        self.checkpoint: Path | None = None
        self.after = "this step"
        self.silent = False
        self._noted = threading.Event()  # the first signal
        self._acted = threading.Event()  # on the second signal
        self._before: dict[int, Any] = {}
        self._told: socket.socket | None = None
        self._wire_before = -1
        self._ignored_before = sys.unraisablehook

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            heard, self._told = socket.socketpair()
            self._told.setblocking(False)
            _count(1)
            self._wire_before = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._answer, args=(heard,), name="answers signals", daemon=True).start()
            self._ignored_before, sys.unraisablehook = sys.unraisablehook, self._ignored
            self.listen()
        return self

    def __exit__(self, *_: Any) -> None:
        self._leave()
        self._before.clear()
        if self._told is not None:
            sys.unraisablehook = self._ignored_before
            signal.set_wakeup_fd(self._wire_before)
            _count(-1)
            self._told.send(END)  # closing would not do: a forked worker may hold its own end of it
            self._told.close()
            self._told = None

    def listen(self) -> None:
        """Take the signals (again, after Lightning has put its own handler over this one)."""
        for number in self._before:
            signal.signal(number, self._note)

    def _leave(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            self._acted.set()
            self._leave()  # a third one meets whoever was there before
            there = self.checkpoint is not None and self.checkpoint.exists()
            raise Interrupted(number, self.checkpoint if there else None, at_once=True)
        self.received = number
        self._noted.set()
        if not self.training:
            raise Interrupted(number, None)

    def _ignored(self, told: sys.UnraisableHookArgs) -> None:
        """Take what Python ignores, as it does of all that is raised while an object is deleted, for not heard yet."""
        if not isinstance(told.exc_value, Interrupted):
            self._ignored_before(told)
            return
        end = threading.Timer(GRACE, self._end, (told.exc_value.signal,))
        end.daemon = True
        end.start()

    def _end(self, number: int) -> None:
        """End the process, unless it has begun to train, and stops after its first step, or has ended to train."""
        if not self.training and self._told is not None:
            _say(str(Interrupted(number, None)))
            os._exit(128 + number)

    def _answer(self, heard: socket.socket) -> None:
        """Say what a signal does as soon as it comes, and end the process where a second one finds no ear."""
        signals = 0
        with heard:
            while (numbers := heard.recv(64)) and END not in numbers:
                for number in set(numbers) & {signal.SIGINT, signal.SIGTERM}:
                    signals += numbers.count(number)
                    if signals == 1 and self.training and not self.silent:
                        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
                        _say(f"stopping after {self.after}{again}")
                    elif signals == 1 and not self._noted.wait(GRACE) and not self.training:
                        self._end(number)
                    elif signals > 1 and not self._acted.wait(GRACE):
                        os._exit(128 + number)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody may be there to read it any more
        print(text, file=sys.stderr, flush=True)
