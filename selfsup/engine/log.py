"""``train.log``: everything that a training says on the screen, and what other packages warn of besides."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import sys
import sysconfig
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from selfsup.engine.stop import Interrupted
from selfsup.errors import UserError
from selfsup.tables import printable

FILE = "train.log"
PACKAGE = Path(__file__).parents[1]
_PLACES = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
LIBRARIES = {*_PLACES, *(place.resolve() for place in _PLACES)}  # an environment may be a link
#: Packages that bring a handler of their own for what they log, which would write into the middle of a bar.
WITH_HANDLERS = ("pytorch_lightning", "lightning_fabric")

#: Held while anything is written, and while a process is forked: what holds it in no thread is free in the child.
LOCK = threading.RLock()
os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)


class RunLog:
    """Keeps what is said while it is open, as a context manager around a training.

    What is printed goes to the screen as ever, without touching the bar that may stand there, and to the file. Warnings
    and log records of this package and of a user's own files are treated alike; those of other packages go to the file
    only.

    Attributes:
        elsewhere: Warnings and records of other packages so far.
        clear, draw: Take the bar off the screen and put it back; None where there is no bar.
    """

    def __init__(self) -> None:
        self.elsewhere = 0
        self.clear: Callable[[], None] | None = None
        self.draw: Callable[[], None] | None = None
        self._path: Path | None = None
        self._who = ""
        self._early: list[str] = []
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> RunLog:
        shown, usual = (sys.stdout, sys.stderr), warnings.showwarning
        sys.stdout, sys.stderr = _Shown(shown[0], self), _Shown(shown[1], self)
        self._undo.callback(_put_back, shown, (sys.stdout, sys.stderr))
        warnings.showwarning = self._warned(usual)
        self._undo.callback(setattr, warnings, "showwarning", usual)
        handler = _Records(self)
        root, own = logging.getLogger(), logging.getLogger("selfsup")
        root.addHandler(handler)
        self._undo.callback(root.removeHandler, handler)
        if own.level == logging.NOTSET:
            own.setLevel(logging.INFO)
            self._undo.callback(own.setLevel, logging.NOTSET)
        for name in WITH_HANDLERS:
            logger = logging.getLogger(name)
            self._undo.callback(vars(logger).update, handlers=logger.handlers, propagate=logger.propagate)
            logger.handlers, logger.propagate = [], True
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        self._undo.close()
        if isinstance(error, UserError | Interrupted):
            self.write(str(error))
        elif error is not None:
            self.write("".join(traceback.format_exception(error)))

    def keep(self, run_dir: Path, rank: int = 0) -> None:
        """Write to the file of a run from now on, on rank 0 also what has been said so far."""
        with LOCK:
            self._path, self._who = run_dir.absolute() / FILE, f"rank {rank}: " if rank else ""
            early, self._early = self._early, []
            if not rank:
                self._append(early)

    def write(self, text: str) -> None:
        """Write to the file what the screen does not need."""
        time = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        # a name with control characters in it, too, stays one line of text
        lines = [f"{time}  {self._who}{printable(line)}" for line in text.splitlines() if line.strip()]
        with LOCK:
            if self._path is None:
                self._early += lines
            else:
                self._append(lines)

    def _append(self, lines: list[str]) -> None:
        assert self._path is not None
        # where the disk is full, the metrics and the checkpoint say so
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(f"{line}\n" for line in lines)

    def _warned(self, usual: Callable[..., None]) -> Callable[..., None]:
        def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
            if is_elsewhere(filename):
                self.elsewhere += 1
                self.write(f"{filename}:{lineno}: {category.__name__}: {message}")
            else:
                usual(message, category, filename, lineno, *rest)

        return show


class _Shown:
    """A stream of the screen: what is written to it goes there past the bar, and whole lines go to the file."""

    def __init__(self, stream: TextIO, log: RunLog) -> None:
        self.stream, self._log, self._line, self._held = stream, log, "", ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with LOCK:
            if "\r" in text:  # another bar draws itself
                self.stream.write(text)
                return len(text)
            *lines, self._line = (self._line + text).split("\n")
            for line in lines:
                self._log.write(line)
            self._held += text
            if self._log.clear is None:
                self.stream.write(self._held)
                self._held = ""
            elif lines:
                whole, self._held = self._held[: self._held.rindex("\n") + 1], self._line
                self._log.clear()
                self.stream.write(whole)
                self.stream.flush()
                if self._log.draw is not None:
                    self._log.draw()
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)


class _Records(logging.Handler):
    """What is logged: shown as it would be without this handler, or only written."""

    def __init__(self, log: RunLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        if is_elsewhere(record.pathname):
            if record.levelno >= logging.WARNING:
                self._log.elsewhere += 1
                self._log.write(f"{record.name}: {record.getMessage()}")
        elif record.levelno < logging.WARNING or len(logging.getLogger().handlers) > 1 or not logging.lastResort:
            self._log.write(record.getMessage())
        else:
            logging.lastResort.handle(record)


def _put_back(before: tuple[TextIO, TextIO], during: tuple[Any, Any]) -> None:
    """Give the streams back, unless somebody else has replaced them meanwhile."""
    if sys.stdout is during[0]:
        sys.stdout = before[0]
    if sys.stderr is during[1]:
        sys.stderr = before[1]


def is_elsewhere(file: str) -> bool:
    """Whether a file is of another package, neither of this one nor of a user's own."""
    if file.startswith("<"):
        return True
    path = Path(file).absolute()
    return PACKAGE not in path.parents and any(library in path.parents for library in LIBRARIES)
