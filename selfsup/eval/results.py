"""The file of a run's results: every number with the protocol it was measured by."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfsup.errors import UserError

Record = dict[str, Any]

FILE = "results.json"
REQUIRED = ("protocol", "split", "metric", "value")

# What an evaluation finds. Every other field says how it was done, and two records that agree on all of those are the
# same measurement.
MEASURED = frozenset(
    {
        "value",
        "seconds",
        "peak_memory_mb",
        "recall",
        "chosen",
        "settings",
        "per_class",
        "confusion",
        "std",
        "values",
        "interval",
        "pixel_accuracy",
        "spectrum",
        "per_head",
        "amplitude",
    }
)


def add_results(run_dir: str | Path, records: Sequence[Record]) -> Path:
    """Merge records into the run's ``results.json`` and return its path.

    A record takes the place of an older one of the same measurement: equal in every field that is not in ``MEASURED``.
    The file is replaced in one step, so that it is whole at every moment.

    Args:
        run_dir: Folder of the run; it is made when missing.
        records: Each with ``protocol``, ``split``, ``metric``, ``value`` (a finite number; accuracies are fractions)
            and the details of the protocol.

    Raises:
        UserError: The file that is there is broken.
        ValueError: A record without one of these fields, or with a number that is not finite.
    """
    for record in records:
        absent = [name for name in REQUIRED if name not in record]
        if absent:
            raise ValueError(f"record without {', '.join(absent)}: {record}")
        if not isinstance(record["value"], int | float) or not math.isfinite(record["value"]):
            raise ValueError(f"record whose value is no finite number: {record}")
    path = Path(run_dir) / FILE
    merged = {_identity(record): record for record in [*(read_results(run_dir) if path.exists() else []), *records]}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{FILE}.{os.getpid()}.tmp")
    temporary.write_text(
        json.dumps({"results": list(merged.values())}, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
    )
    os.replace(temporary, path)
    return path


def read_results(run_dir: str | Path) -> list[Record]:
    """Return the records of a run.

    Raises:
        UserError: There is no ``results.json``, or it is broken.
    """
    path = Path(run_dir) / FILE
    if not path.exists():
        raise UserError(f"'{run_dir}' has no {FILE}; evaluate the run first (selfsup evaluate checkpoint={run_dir}).")
    try:
        records = json.loads(path.read_text("utf-8"))["results"]
        whole = isinstance(records, list) and all(isinstance(r, dict) and set(REQUIRED) <= r.keys() for r in records)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' is broken; delete it and evaluate the run again.") from error
    if not whole:
        raise UserError(f"'{path}' holds something else than results; delete it and evaluate the run again.")
    return records  # type: ignore[no-any-return]


def peak_memory_mb() -> float:
    """Return the most memory this process has held so far, in MB (10⁶ bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # macOS counts bytes, Linux KiB


def _identity(record: Record) -> str:
    return json.dumps({name: value for name, value in record.items() if name not in MEASURED}, sort_keys=True)
