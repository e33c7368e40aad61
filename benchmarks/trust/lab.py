"""Where faults are tried: a finished run and a stopped one to damage, commands that are run on them, and a judgement.

A command is forked from this process, which has imported everything, and takes a second instead of ten.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import kills

METHOD = "moco"
PATIENCE = 240.0  # seconds that a command has
EVALUATION = ["eval.figures=false", "eval.knn_k=[5]"]


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said; ``code`` is None for one that did not end by itself."""

    code: int | None
    said: str

    @property
    def last(self) -> str:
        lines = [line for line in self.said.splitlines() if line.strip()]
        return lines[-1][:250] if lines else ""


@dataclass
class Moment:
    """When something happens to a command: the ``nth`` of a kind of moment within ``folder``.

    With ``full`` no file grows from then on; else it gets ``signals``.
    """

    kind: str
    nth: int
    folder: Path
    full: bool = False
    signals: tuple[int, ...] = ()
    rank: int = 0


class Running:
    """A command that runs; what it says is read through a pipe, as a file would not grow on a full disk."""

    def __init__(self, lab: Lab, words: list[str], moment: Moment | None = None, listing: Path | None = None) -> None:
        number = time.monotonic_ns()
        pipe, self.mark = lab.scratch / f"said{number}", lab.scratch / f"mark{number}"
        environment = {} if listing is None else {"TRUST_MOMENTS": str(listing), "TRUST_FOLDER": str(listing.parent)}
        if moment is not None:
            about = {"kind": moment.kind, "nth": moment.nth, "signals": list(moment.signals), "rank": moment.rank}
            about |= {"full": moment.full, "group": False, "mark": str(self.mark)}
            environment = {"TRUST_MOMENT": json.dumps(about), "TRUST_FOLDER": str(moment.folder)}
        os.mkfifo(pipe)
        self._said: list[bytes] = []
        self._end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        self._done = threading.Event()
        self.process = kills.Process(words, pipe, environment)  # before the thread: a process that has some cannot fork
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._pipe = pipe

    def _read(self) -> None:
        while not self._done.is_set():
            if select.select([self._end], [], [], 0.05)[0]:
                with contextlib.suppress(BlockingIOError):
                    if said := os.read(self._end, 2**16):
                        self._said.append(said)
                    else:
                        self._done.wait(0.02)  # nobody has it open, yet or any more

    def reached(self) -> bool:
        """Wait until the moment has come; return whether it did."""
        while not self.mark.exists() and not self.process.ended():
            time.sleep(0.01)
        return self.mark.exists()

    def end(self, patience: float = PATIENCE) -> Ended:
        """Wait for the end; what is left of its processes is killed and counts as not ended."""
        ended = self.process.wait(patience)
        limit = time.monotonic() + 20
        while (others := self.process.others()) and time.monotonic() < limit:
            time.sleep(0.05)
        for pid in [*others, *([] if ended else [self.process.pid])]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        time.sleep(0.1)
        self._done.set()
        self._reader.join()
        os.close(self._end)
        self._pipe.unlink()
        said = b"".join(self._said).decode(errors="replace")
        return Ended(self.process.code if ended and not others else None, said)


class Lab:
    """A scratch folder with a finished run and one that was stopped at its sixth step."""

    def __init__(self, scratch: Path) -> None:
        self.campaign = kills.Campaign(scratch, [METHOD], ["single"], seed=0)
        self.scratch = self.campaign.scratch
        self.settings = self.campaign.settings(METHOD, "single")
        self.whole, _, self.moments = self.campaign.whole(METHOD, "single")
        self._half: Path | None = None
        self._count = 0

    def folder(self) -> Path:
        """Return a new folder."""
        self._count += 1
        folder = self.scratch / f"fault{self._count}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def run(self, *words: str, moment: Moment | None = None, listing: Path | None = None) -> Ended:
        """Run a command to its end."""
        return Running(self, list(words), moment, listing).end()

    def finished(self) -> Path:
        """Return a copy of the finished run."""
        return Path(shutil.copytree(self.whole, self.folder() / "run"))

    def half(self) -> Path:
        """Return a copy of the run that was stopped, to go on with ``resume``."""
        if self._half is None:
            self._half = self.folder() / "run"
            words = self.training(self._half)
            self.run(*words, moment=Moment("a step begins", 7, self._half, signals=(signal.SIGKILL,)))
        return Path(shutil.copytree(self._half, self.folder() / "run"))

    def training(self, run: Path) -> list[str]:
        """Return the command of a training that goes on by itself."""
        return ["train", *self.settings, f"run_dir={run}", "resume=auto"]

    def opened(self, words: list[str], folder: Path) -> dict[str, int]:
        """Run a command and return how often it opens which file below a folder to write, by kind of moment."""
        listing = folder / "moments.txt"
        ended = self.run(*words, listing=listing)
        if ended.code:
            raise SystemExit(f"without a fault it fails: {' '.join(words)}: {ended.said[-2000:]}")
        kinds = listing.read_text().splitlines() if listing.exists() else []
        listing.unlink(missing_ok=True)
        return dict(collections.Counter(kind for kind in kinds if kind.startswith("open ")))


def refused(ended: Ended, *names: str, codes: tuple[int, ...] = (2,)) -> list[str]:
    """Return what is wrong with how a command ended: a sentence that names these is due, or an end that is allowed."""
    if ended.code is None:
        return ["it did not end, or left processes behind"]
    if "Traceback (most recent" in ended.said:
        return [f"a traceback, exit code {ended.code}: {ended.last}"]
    if ended.code not in codes:
        return [f"{'accepted' if ended.code == 0 else f'exit code {ended.code}'}: {ended.last}"]
    if ended.code == 2 and any(name not in ended.said for name in names):
        return [f"does not name {' and '.join(name for name in names if name not in ended.said)}: {ended.last}"]
    return []


def drafts(folder: Path) -> list[str]:
    """Return what half-written files lie in a folder."""
    return [f"{path.relative_to(folder)} is left" for path in folder.rglob(".*.new")]
