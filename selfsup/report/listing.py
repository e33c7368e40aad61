"""The runs below a folder, with what a list of them shows: read from their files, and nothing of them is opened."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfsup.errors import UserError, from_json
from selfsup.report.comparison import choice
from selfsup.report.estimates import read_numbers
from selfsup.settings.values import read_yaml

COLUMNS = ("run", "method", "data", "state", "epochs", "kNN", "best online kNN", "started")


@dataclass(frozen=True)
class Seen:
    """A run as the list shows it.

    Attributes:
        folder: Where it is.
        name: Its path below the folder that was searched.
        method, data: Their names, or nothing.
        state: ``running``, ``finished``, ``stopped``, ``evaluated`` (nothing was trained) or ``unreadable``.
        epochs: Epochs that were trained, of all that it is to train.
        knn: kNN accuracy of its evaluation, the best where there are several; or None.
        online: Best online accuracy of its training, or None.
        started: When it began, in local time.
    """

    folder: Path
    name: str
    method: str = ""
    data: str = ""
    state: str = ""
    epochs: str = ""
    knn: float | None = None
    online: float | None = None
    started: str = ""

    def cells(self) -> list[str]:
        """Return the line of the list, in the order of ``COLUMNS``."""
        accuracies = ["" if value is None else f"{100 * value:.1f} %" for value in (self.knn, self.online)]
        return [self.name, self.method, self.data, self.state, self.epochs, *accuracies, self.started]


def list_runs(folder: str | Path) -> list[Seen]:
    """Return the runs below a folder, the latest first.

    A run is a folder with a ``config.yaml`` or a ``results.json``; what lies in it is not searched.

    Raises:
        UserError: There is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"There is no folder {root}; give the one that holds the runs.")
    found = [(_started(path), _seen(path, path.relative_to(root).as_posix())) for path in _run_folders(root)]
    return [seen for _, seen in sorted(found, key=lambda item: (-item[0], item[1].name))]


def is_training(folder: Path) -> bool:
    """Whether a process trains in a run's folder now: it holds the folder's lock."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks
    finally:
        os.close(descriptor)
    return False


def _run_folders(root: Path) -> Iterator[Path]:
    for path, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith("."))
        if {"config.yaml", "results.json"} & set(files):
            names.clear()
            yield Path(path)


def _seen(folder: Path, name: str) -> Seen:
    try:
        config = read_yaml(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
        records = _json(folder / "results.json").get("results", [])
        trained = [int(r["epochs"]) for r in records if r["protocol"] == "training" and r.get("epochs") is not None]
        found = [r for r in records if (r["protocol"], r["metric"]) == ("knn", "top1") and r.get("primary")]
        scores = [float(r["value"]) for r in found]
        most = int(config["trainer"]["max_epochs"]) if config else 0
        method = choice(config, "method") or ""
        data = choice(config, "data") or next((str(r["data"]) for r in records if "data" in r), "")
    except (UserError, ValueError, KeyError, TypeError, AttributeError, OSError):
        return Seen(folder, name, state="unreadable", started=_date(_started(folder)))
    logged = read_numbers(folder / "metrics.csv")
    epochs = int(max((line["epoch"] + 1 for line in logged if "epoch" in line), default=0))
    state = "evaluated"
    if config:
        state = "running" if is_training(folder) else "finished" if max(trained, default=-1) >= most else "stopped"
    online = [line["online/knn"] for line in logged if "online/knn" in line]
    return Seen(
        folder,
        name,
        method,
        data,
        state,
        f"{max(epochs, *trained, 0)} of {most}" if config else "",
        max(scores, default=None),
        max(online, default=None),
        _date(_started(folder)),
    )


def _started(folder: Path) -> float:
    """Return when a run began: what it noted down, or when its first file was written last."""
    with contextlib.suppress(UserError, ValueError, TypeError, KeyError, OSError):
        return datetime.datetime.fromisoformat(_json(folder / "environment.json")["started"]).timestamp()
    times = [path.stat().st_mtime for path in map(folder.joinpath, ("config.yaml", "results.json")) if path.is_file()]
    return min(times, default=0.0)


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    values = from_json(path.read_text("utf-8"))
    return values if isinstance(values, dict) else {}
