"""Python files of a user's own (``--import FILE``): executed, kept in the run, and found again when it is opened.

A run keeps a copy of each file below ``imports/``, and ``environment.json`` says where it came from and its SHA-256.
Whoever opens the run, to evaluate, resume or export it, may need what the file registers. But a run folder is data,
which may come from anybody, so no code runs because a folder is opened, with one exception: a file whose every byte
this user has once given to ``--import`` on this machine. Their digests are remembered below the user's own
``~/.local/state``, outside any run. For any other file a message names the copy that ``--import`` takes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from selfsup.errors import UserError, from_json

FOLDER = "imports"
ENVIRONMENT = "environment.json"


@dataclass(frozen=True)
class OwnFile:
    """A file that was executed.

    Attributes:
        path: Where it lies, absolute.
        source: Its bytes.
    """

    path: Path
    source: bytes

    @property
    def sha256(self) -> str:
        """Digest of its bytes."""
        return hashlib.sha256(self.source).hexdigest()


#: What has been executed in this process, by the name of the module.
_executed: dict[str, OwnFile] = {}
#: Copies in runs that were opened, which only an explicit --import may execute.
_wanted: dict[str, Path] = {}


def execute(files: Iterable[str | Path]) -> None:
    """Execute the files of ``--import``, so that what is in them registers, and remember that this user did.

    Raises:
        UserError: No such file, one whose name hides another module, or an error in it (with its line).
    """
    paths = [Path(file).expanduser().absolute() for file in files]
    for path in paths:
        if not path.is_file():
            raise UserError(f"--import: there is no file {path}.")
        if path.suffix != ".py":
            raise UserError(f"--import: {path} is not a Python file.")
    for path in paths:
        same = [other for other in paths if other.stem == path.stem and other != path]
        if same:
            raise UserError(f"--import: {path} and {same[0]} have one name; rename one of them.")
        own = OwnFile(path, path.read_bytes())
        try:
            _execute(own)
        except _Failed as error:
            raise UserError(f"--import: {error}") from error.__cause__
        _wanted.pop(own.sha256, None)
        _remember(own.sha256)


def record(run_dir: Path, before: Sequence[dict[str, str]] = ()) -> list[dict[str, str]]:
    """Copy what was executed into a run, and return what ``environment.json`` says of it, in order.

    Args:
        run_dir: The run's folder.
        before: What it said so far, of a run that goes on: a file that has changed since takes the place of the old.
    """
    entries = {entry["file"]: entry for entry in before}
    for name, own in _executed.items():
        file = f"{name}.py"
        if entries.get(file, {}).get("sha256") == own.sha256:
            continue  # it may have been executed from the run's copy, and came from elsewhere
        (run_dir / FOLDER).mkdir(exist_ok=True)
        (run_dir / FOLDER / file).write_bytes(own.source)
        entries[file] = {"file": file, "path": str(own.path), "sha256": own.sha256}
    return list(entries.values())


def recall(run_dir: Path) -> None:
    """Execute what a run was made with, where this user has given just that to ``--import`` before; note the rest.

    Called when a run is opened. The file is taken from where it was, if it is unchanged, else from the run's copy. One
    of the same name that was executed already stands for it.
    """
    for entry in recorded(run_dir):
        file, original, digest = entry["file"], Path(entry["path"]), entry["sha256"]
        name, copy = file.removesuffix(".py"), run_dir / FOLDER / file
        if name in _executed or digest in _wanted:
            continue
        sources = [OwnFile(path.absolute(), path.read_bytes()) for path in (original, copy) if path.is_file()]
        own = next((source for source in sources if source.sha256 == digest), None)
        if own is None or digest not in _remembered():
            _wanted[digest] = copy
            continue
        try:
            _execute(own)
        except _Failed as error:
            _wanted[digest] = copy
            warnings.warn(f"{run_dir} was made with --import {file}, which no longer works: {error}", stacklevel=3)
        else:
            warnings.warn(f"{own.path} is imported, as {run_dir} was made with it.", stacklevel=3)


def recorded(run_dir: Path) -> list[dict[str, str]]:
    """Return name, first place and digest of the files of a run; nothing where its ``environment.json`` has none."""
    try:
        if not (run_dir / ENVIRONMENT).is_file():  # of a pipe nobody may ever write the end
            return []
        entries = from_json((run_dir / ENVIRONMENT).read_text("utf-8"))["imports"]
        found = [{key: str(entry[key]) for key in ("file", "path", "sha256")} for entry in entries]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    # the name is printed, and must not lead out of the folder
    return [
        e for e in found if Path(e["file"]).name == e["file"] and e["file"].endswith(".py") and e["file"].isprintable()
    ]


def hint() -> str:
    """Return a sentence for a name that is unknown, if a run that was opened has files that might bring it, or ""."""
    if not _wanted:
        return ""
    options = " ".join(f"--import {shlex.quote(str(path))}" for path in _wanted.values())
    return f" The run was made with a file of code that has not been executed here: look at it, then add {options}."


class _Failed(Exception):
    """A file could not be executed; the message says why and where."""


def _execute(own: OwnFile) -> None:
    name = own.path.stem
    if _executed.get(name) == own:
        return
    there = sys.modules.get(name)
    if there is not None and name not in _executed:
        if Path(getattr(there, "__file__", None) or "").absolute() == own.path:
            _executed[name] = own  # a launcher's process has imported it to unpickle what came from it
            return
        raise _Failed(f"{own.path} would hide the module {name}; rename it.")
    if name in sys.stdlib_module_names:
        raise _Failed(f"{own.path} would hide the module {name}; rename it.")
    module = ModuleType(name)
    module.__file__ = str(own.path)
    sys.modules[name] = module  # dataclasses and pickling look their module up there
    try:
        # what was read is what runs, though the file may change
        exec(compile(own.source, str(own.path), "exec"), vars(module))  # noqa: S102 the user gave it to --import
    except (Exception, SystemExit) as error:
        sys.modules.pop(name)
        if isinstance(error, SyntaxError):
            line = error.lineno if error.filename == str(own.path) else None
            said = error.msg
        else:
            frames = traceback.extract_tb(error.__traceback__)
            line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(own.path)), None)
            said = " ".join(str(error).split())
        where = f"{own.path}, line {line}" if line is not None else str(own.path)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise _Failed(f"{where}: {kind}{said.rstrip('.')}.") from error
    _executed[name] = own


def _ledger() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "selfsup" / "imported"


def _remembered() -> set[str]:
    try:
        return set(_ledger().read_text("utf-8").split())
    except (OSError, RuntimeError, ValueError):  # none yet, no home, not text
        return set()


def _remember(digest: str) -> None:
    if digest in _remembered():
        return
    with contextlib.suppress(OSError, RuntimeError):  # without a home the next run needs --import again
        _ledger().parent.mkdir(parents=True, exist_ok=True)
        with _ledger().open("a", encoding="utf-8") as file:
            file.write(f"{digest}\n")
