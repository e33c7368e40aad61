"""The file of a run's results: every number with the protocol it was measured by."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfsup.errors import UserError, from_json
from selfsup.eval.record import Record
from selfsup.wording import command, word
from selfsup.writing import replacing

FILE = "results.json"


def add_results(run_dir: str | Path, records: Sequence[Record | Mapping[str, Any]]) -> Path:
    """Merge records into the run's ``results.json`` and return its path.

    A record takes the place of an older one of the same measurement: one with the same ``identity``. The file is
    replaced in one step, so that it is whole at every moment.

    Args:
        run_dir: Folder of the run; it is made when missing.
        records: Records, or dictionaries as the file holds them.

    Raises:
        UserError: The file that is there is broken.
        ValueError: A record without one of its fields, or with a value that is not finite.
    """
    added = [Record.from_flat(record) for record in records]
    for record in added:
        record.check()
    path = Path(run_dir) / FILE
    with replacing(path) as draft:  # read within, so that nothing that another process adds meanwhile is lost
        merged = {record.identity: record for record in [*(read_results(run_dir) if path.exists() else []), *added]}
        content = {"results": [record.flat() for record in merged.values()]}
        try:
            text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        except ValueError as error:  # what is added is finite
            raise _broken(path) from error
        # the escape of half a surrogate pair, such as a folder's name in no Unicode gives, is JSON's own
        draft.write_bytes(f"{text}\n".encode("utf-8", "backslashreplace"))
    return path


def read_results(run_dir: str | Path) -> list[Record]:
    """Return the records of a run.

    Raises:
        UserError: There is no ``results.json``, or it is broken.
    """
    path = Path(run_dir) / FILE
    if not path.exists():
        raise UserError(f"'{run_dir}' has no {FILE}; evaluate the run first ({command('evaluate', word(run_dir))}).")
    try:
        if not path.is_file():  # of a pipe nobody may ever write the end
            raise OSError("it is no file")
        return [Record.from_flat(dict(record)) for record in from_json(path.read_text("utf-8"))["results"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(path) from error


def _broken(path: Path) -> UserError:
    return UserError(f"'{path}' is broken; delete it and evaluate the run again.")


def peak_memory_mb() -> float:
    """Return the most memory this process has held so far, in MB (10⁶ bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # macOS counts bytes, Linux KiB
