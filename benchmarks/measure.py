"""Timing of several ways to do one thing, side by side, and the files that a benchmark leaves.

A benchmark is run as ``python benchmarks/NAME.py``, so that it finds this module beside it.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from selfsup.tables import markdown_table


def alternate(rivals: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Return the seconds of ``repeats`` calls of every rival.

    The rivals take turns, so that what else the machine does meets all of them alike. Every other round runs in
    reverse, so that none always follows the same one. The first ``warmup`` rounds do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(warmup + repeats):
        for name in rivals if turn % 2 == 0 else reversed(rivals):
            synchronize()
            start = time.perf_counter()
            rivals[name]()
            synchronize()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, the lowest and the highest."""
    return statistics.median(seconds), min(seconds), max(seconds)


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def processor_seconds() -> float:
    """Return the seconds that all cores together worked for this process and its workers, ended or at work.

    Those at work are counted on Linux alone.
    """
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(part.ru_utime + part.ru_stime for part in parts)
    for worker in multiprocessing.active_children():
        with contextlib.suppress(OSError, IndexError):
            # behind the name, which may hold anything: state and 10 numbers, then user and system time in ticks
            fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def write(out: str | Path, name: str, rows: Sequence[Mapping[str, Any]], protocol: str) -> str:
    """Write ``NAME.json`` and ``NAME.md`` into the folder and return the Markdown.

    Args:
        out: The folder; it is made.
        name: Of the benchmark.
        rows: Of the table, each a value by column. Columns are those of all rows, in order of appearance; numbers are
            printed with at least three digits.
        protocol: What was measured and how, for both files.
    """
    machine = hardware()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = markdown_table(columns, [[_cell(row.get(column)) for column in columns] for row in rows])
    markdown = f"{protocol}\n\n{'; '.join(f'{key} {value}' for key, value in machine.items())}\n\n{table}"
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(markdown)
    content = {"name": name, "protocol": protocol, "machine": machine, "rows": [dict(row) for row in rows]}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    return markdown


def fill(page: Path, contents: Mapping[str, str]) -> None:
    """Put texts between marks of a page: ``<!-- NAME -->`` and ``<!-- end of NAME -->``.

    Raises:
        SystemExit: The page has no such marks.
    """
    text = page.read_text()
    for name, content in contents.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{page} has no place for {name}: {begin} … {end}")
        text = f"{before}{begin}\n{content}\n{end}{after}"
    page.write_text(text)


def hardware() -> dict[str, Any]:
    """Return the processor, the GPU, torch's version, its threads and the date."""
    found = {"processor": f"{os.cpu_count()} cores of {_processor()}", "GPU": "none"}
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    return {
        **found,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
