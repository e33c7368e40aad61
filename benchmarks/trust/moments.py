"""A training that ends itself at a chosen moment: ``python benchmarks/trust/moments.py train SETTING…``.

``TRUST_MOMENT`` says when, as JSON: the kind of moment, the how manyth of its kind, the signals, the rank, and whether
the whole process group gets them. With ``full`` no file grows from then on, as on a full disk. ``TRUST_MOMENTS`` names
a file that lists the kinds that a run passes through. They are whatever changes a file of the run folder, or of
``TRUST_FOLDER`` (as Python's audit events tell, so that no name of the code stands here), the middle of a checkpoint's
write, a step's beginning and end, and the beginning and end of an online evaluation.
"""

from __future__ import annotations

import collections
import functools
import io
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.link": 1, "os.truncate": 0}  # place of the path
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Moments:
    """Counts the moments that this process passes through, and sends signals at the chosen one."""

    def __init__(self, run_dir: Path, chosen: dict[str, Any] | None, listing: Path | None) -> None:
        self.folder, self.chosen, self.listing = str(run_dir), chosen, listing
        self.process, self.busy = os.getpid(), False
        self.counts: collections.Counter[str] = collections.Counter()

    def here(self, kind: str) -> None:
        """Note a moment."""
        if self.busy or os.getpid() != self.process:  # a loader's worker
            return
        self.busy = True
        self.counts[kind] += 1
        if self.listing is not None and os.environ.get("LOCAL_RANK", "0") == "0":
            with self.listing.open("a") as file:
                file.write(kind + "\n")
        self.busy = False
        chosen = self.chosen
        if chosen is None or chosen["rank"] != int(os.environ.get("LOCAL_RANK", "0")):
            return
        if kind == chosen["kind"] and self.counts[kind] == chosen["nth"]:
            Path(chosen["mark"]).touch()
            if chosen.get("full"):
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            for number in chosen["signals"]:
                if chosen["group"]:
                    os.killpg(os.getpgrp(), number)
                else:
                    os.kill(os.getpid(), number)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note what changes a file of the run folder."""
        if event == "open":
            path, _, flags = arguments
            if not flags & WRITES:
                return
        elif event in CHANGES:
            path = arguments[CHANGES[event]]
        else:
            return
        if isinstance(path, str | bytes | os.PathLike):
            name = os.fsdecode(path)
            if name.startswith(self.folder):
                self.here(f"{event.removeprefix('os.')} {Path(name).name}")

    def around(self, owner: Any, name: str, kind: str) -> None:
        """Note the beginning and the end of a function."""
        usual: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(usual)
        def noted(*arguments: Any, **more: Any) -> Any:
            self.here(f"{kind} begins")
            result = usual(*arguments, **more)
            self.here(f"{kind} ends")
            return result

        setattr(owner, name, noted)

    def within_checkpoints(self) -> None:
        """Note the middle of a checkpoint's write, when half of it is in the file."""
        import torch

        usual = torch.save

        def save(content: Any, file: Any, *arguments: Any, **more: Any) -> None:
            if not isinstance(file, str | os.PathLike):  # a part of something else, in memory
                usual(content, file, *arguments, **more)
                return
            whole = io.BytesIO()
            usual(content, whole, *arguments, **more)
            half = len(whole.getvalue()) // 2
            Path(file).write_bytes(whole.getvalue()[:half])
            self.here("half of a checkpoint")
            usual(content, file, *arguments, **more)

        torch.save = save


def main(arguments: list[str]) -> int:
    """Run a command of selfsup with its moments noted."""
    from selfsup import cli
    from selfsup.engine.callbacks import OnlineEvaluation
    from selfsup.methods import Method

    named = [word.partition("=")[2] for word in arguments if word.startswith(("run_dir=", "resume=/"))]
    run_dir = os.environ.get("TRUST_FOLDER") or next(iter(named), "")
    chosen, listing = os.environ.get("TRUST_MOMENT"), os.environ.get("TRUST_MOMENTS")
    if chosen or listing:
        moments = Moments(Path(run_dir), json.loads(chosen) if chosen else None, Path(listing) if listing else None)
        moments.around(Method, "training_step", "a step")
        moments.around(Method, "optimizer_step", "an optimiser's step")
        moments.around(OnlineEvaluation, "look", "an online evaluation")
        moments.within_checkpoints()
        sys.addaudithook(moments.audit)
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
