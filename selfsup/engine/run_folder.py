"""The folder of a run: its name, its beginning, who works in it, and what it says of itself."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.rank_zero import rank_zero_only

from selfsup.config import UNTIL, TrainConfig, to_yaml
from selfsup.data import Splits
from selfsup.data.membership import FILE as MEMBERSHIP
from selfsup.engine.capture import FILE as CAPTURE
from selfsup.engine.environment import environment, now
from selfsup.engine.resuming import Change, Rule
from selfsup.errors import UserError, from_json
from selfsup.imports import record, recorded
from selfsup.wording import command, counted
from selfsup.writing import replace_text

CONFIG, ENVIRONMENT, CHANGES = "config.yaml", "environment.json", "changes.json"

#: What lies in a run's folder before its first checkpoint.
BEFORE_A_CHECKPOINT = {
    CONFIG,
    ENVIRONMENT,
    MEMBERSHIP,
    "metrics.csv",
    "times.csv",
    "train.log",
    "checkpoints",
    "figures",
    "imports",
    "membership.npz",
    "tensorboard",
    "wandb",
    "report.html",
    "start",
    CAPTURE,
}

PATIENCE = 10.0  # seconds; loader workers of a run that was killed hold its folder until they notice


def choose_run_dir(config: TrainConfig) -> Path:
    """Return the folder of a run that starts: ``run_dir``, or a new name under ``runs/``.

    Raises:
        UserError: It is there already.
    """
    if config.run_dir is None:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        name = f"{config.scheme}-{config.data.name}-seed{config.seed}-{stamp}"
        return next(
            path for n in itertools.count() if not (path := Path("runs") / (name + (f"-{n}" if n else ""))).exists()
        )
    run_dir = Path(config.run_dir).expanduser()
    # the first process may have made the folder when the others come
    if run_dir.exists() and is_first_process():
        begun = begun_without_checkpoint(run_dir)
        way_on = "start it again with resume=auto" if begun else f"go on with: {command('train', f'resume={run_dir}')}"
        raise UserError(f"run_dir: {run_dir} exists and is not overwritten; choose another, or {way_on}.")
    return run_dir


def begun_without_checkpoint(run_dir: Path) -> bool:
    """Whether a folder holds nothing but the beginnings of a run that was stopped before its first checkpoint."""
    if not run_dir.is_dir() or (run_dir / "checkpoints" / "last.ckpt").exists():
        return False
    names = {path.name for path in run_dir.iterdir() if not path.name.startswith(".")}
    return names <= BEFORE_A_CHECKPOINT


def is_first_process() -> bool:
    """Whether this is rank 0, which starts the others when it has already made the run folder."""
    return int(getattr(rank_zero_only, "rank", None) or 0) == 0


def make_run_dir(run_dir: Path, again: bool) -> None:
    """Make the folder of a run that starts.

    Args:
        run_dir: Its path.
        again: Whether it may be there, from a beginning that was stopped.

    Raises:
        UserError: It cannot be written, or another process has made it.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=again)
    except OSError as error:
        raise UserError(f"run_dir: {run_dir} cannot be written ({error}); choose another.") from error


def fill_run_dir(run_dir: Path, config: TrainConfig, splits: Splits, info: dict[str, Any]) -> None:
    """Write what a run says of itself before it trains: its configuration, what it runs on, its images, its weights.

    Raises:
        UserError: It cannot be written, or another process has trained there meanwhile.
    """
    if not begun_without_checkpoint(run_dir):
        raise UserError(f"run_dir: another process has begun in {run_dir}; choose another, or go on with resume=auto.")
    try:
        (run_dir / "figures").mkdir(exist_ok=True)
        for leftover in ("metrics.csv", "times.csv", "figures/views.png"):  # of a beginning that was stopped
            (run_dir / leftover).unlink(missing_ok=True)
        if splits.membership is not None:
            splits.membership.save(run_dir)
    except OSError as error:
        raise UserError(f"run_dir: {run_dir} cannot be written ({error}); choose another.") from error
    replace_text(run_dir / CONFIG, to_yaml(config))
    about = environment() | {"data": None if splits.found is None else splits.found.to_json()}
    about["membership"] = None if splits.membership is None else splits.membership.summary()
    about |= {key: info[key] for key in ("start", "held", "teacher")}
    about["imports"] = record(run_dir)
    replace_text(run_dir / ENVIRONMENT, json.dumps(about, indent=2) + "\n")


def note_changes(run_dir: Path, config: TrainConfig, step: int, epoch: int, changed: Sequence[Change]) -> None:
    """Keep ``config.yaml`` and ``changes.json`` true when a run goes on.

    ``config.yaml`` holds the settings from here on, and as comments those of before that make a difference.
    ``changes.json`` lists all of them. What was changed at a later step than this one goes, as its rows of
    ``metrics.csv`` do.
    """
    history = [entry for entry in read_changes(run_dir) if entry["step"] < step]
    if changed:
        settings = {c.key: {"was": c.was, "now": c.now, "learns": c.rule is Rule.LEARNS} for c in changed}
        history.append({"step": step, "epoch": epoch, "time": now(), "settings": settings})
    if history:
        replace_text(run_dir / CHANGES, json.dumps({"changes": history}, indent=2, ensure_ascii=False) + "\n")
    else:
        (run_dir / CHANGES).unlink(missing_ok=True)
    head = [
        f"{UNTIL}{entry['step']} ({counted(entry['epoch'], 'epoch')}) it had {key}={json.dumps(values['was'])}\n"
        for entry in history
        for key, values in entry["settings"].items()
        if values.get("learns")
    ]
    text = "".join(head) + to_yaml(config)
    path = run_dir / CONFIG
    if not path.is_file() or path.read_text("utf-8", errors="replace") != text:
        replace_text(path, text)


def note_imports(run_dir: Path) -> None:
    """Keep what ``environment.json`` says of the user's own files true when a run goes on with others.

    Raises:
        UserError: It is broken, or cannot be written.
    """
    before = recorded(run_dir)
    files = record(run_dir, before)
    path = run_dir / ENVIRONMENT
    if files != before:
        try:
            about = dict(from_json(path.read_text("utf-8")) if path.exists() else {})
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} is broken; put it right, or delete it.") from error
        replace_text(path, json.dumps(about | {"imports": files}, indent=2) + "\n")


def read_changes(run_dir: Path) -> list[dict[str, Any]]:
    """Return what resumes changed in a run: for each its step, epoch, time and settings.

    Raises:
        UserError: ``changes.json`` is there and broken.
    """
    path = run_dir / CHANGES
    if not path.exists():
        return []
    try:
        entries = from_json(path.read_text("utf-8"))["changes"]
        return [
            {"step": int(e["step"]), "epoch": int(e["epoch"]), "time": str(e["time"]), "settings": dict(e["settings"])}
            for e in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is broken; put it right, or delete it, and the history of settings is lost."
        ) from error


@contextlib.contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Let no second training work in a run's folder meanwhile; it ends with the process, however that ends.

    Raises:
        UserError: Another process trains there.
    """
    try:
        folder = os.open(run_dir, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"run_dir: {run_dir} cannot be read ({error}).") from error
    try:
        began = time.monotonic()
        while not _lock(folder):
            if time.monotonic() - began > PATIENCE:
                raise UserError(
                    f"{run_dir} is being trained by another process; wait for it or stop it, or choose another run_dir."
                )
            time.sleep(0.1)
        yield
    finally:
        os.close(folder)


def _lock(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return True
