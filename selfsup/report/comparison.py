"""Runs side by side: a table, a file for a spreadsheet, a chart, and a page that shows all there is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfsup.errors import UserError
from selfsup.eval.record import Record
from selfsup.eval.results import FILE, read_results
from selfsup.report.atlas import Atlas, read_atlas
from selfsup.settings.values import read_yaml
from selfsup.tables import console_table, csv_table, markdown_table, printable
from selfsup.wording import command, word

MISSING = "–"
COLUMNS = (
    "run",
    "method",
    "backbone",
    "data",
    "epochs",
    "seed",
    "split",
    "kNN",
    "linear probe",
    "mAP of kNN",
    "mAP of probe",
    "R²",
    "mIoU",
    "RankMe",
    "seconds",
    "memory MB",
    "images seen",
)
#: Columns that hold accuracies: protocol and metric.
ACCURACIES = {
    "kNN": ("knn", "top1"),
    "linear probe": ("linear_probe", "top1"),
    "mAP of kNN": ("multilabel_knn", "map"),
    "mAP of probe": ("multilabel_probe", "map"),
    "R²": ("regression", "r2"),
    "mIoU": ("segmentation", "miou"),
}
#: Columns that are there only when a run has them; the first two also where no run has one of the next three.
OF_CLASSES, OF_TARGETS = ("kNN", "linear probe"), ("mAP of kNN", "mAP of probe", "R²")
OPTIONAL = (*OF_TARGETS, "mIoU", "memory MB", "images seen")
WRITTEN = 40  # letters of a value that a note holds


@dataclass(frozen=True)
class Run:
    """A folder that is compared, as it was read.

    Attributes:
        folder: Where it is.
        config: Its ``config.yaml``, empty where there is none.
        records: All of its results.
        used: The records that its accuracies come from, by column.
        atlas: The map of its features, or None.
    """

    folder: Path
    config: dict[str, Any]
    records: list[Record]
    used: dict[str, Record]
    atlas: Atlas | None = None

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the labels, or None where they are not known."""
        return (self.atlas.classes or None) if self.atlas is not None else None


@dataclass(frozen=True)
class Table:
    """What a comparison found.

    Attributes:
        rows: One a run; the keys are ``columns``, None where a run lacks the value. Accuracies are fractions.
        notes: What a reader has to know: missing results, differences in the protocols.
        columns: Names of the columns, in order.
        accuracies: The columns that hold accuracies.
        runs: What the rows come from, in their order.
    """

    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    columns: tuple[str, ...] = tuple(column for column in COLUMNS if column not in OPTIONAL)
    accuracies: tuple[str, ...] = tuple(column for column in ACCURACIES if column not in OPTIONAL)
    runs: list[Run] = field(default_factory=list)

    @property
    def has_accuracies(self) -> bool:
        """Whether any run has an accuracy."""
        return any(row.get(column) is not None for row in self.rows for column in self.accuracies)

    def __str__(self) -> str:
        notes = (f"note: {printable(note)}" for note in self.notes)
        return "\n".join([console_table(self.columns, self.cells()), *notes])

    def markdown(self) -> str:
        """Return the table for a Markdown page, accuracies in percent."""
        return markdown_table(self.columns, self.cells(), self.notes)

    def csv(self) -> str:
        """Return the table for a spreadsheet, accuracies as fractions."""
        return csv_table(self.columns, [[row.get(column) for column in self.columns] for row in self.rows])

    def cells(self) -> list[list[str]]:
        """Return the rows as they are written for a person."""
        return [[self._text(row, column) for column in self.columns] for row in self.rows]

    def _text(self, row: dict[str, Any], column: str) -> str:
        value = row[column]
        if value is None:
            return MISSING
        if column in self.accuracies:
            return f"{100 * value:.1f} %"
        return f"{value:.1f}" if isinstance(value, float) else str(value)


def read_table(run_dirs: Sequence[str | Path]) -> Table:
    """Put the results of several runs in one table.

    A run is a folder with a ``config.yaml``, a ``results.json``, or both; baselines such as raw pixels have the second
    alone. The weights that a run started from have a row of their own, where they were evaluated. Of each protocol the
    primary number of the latest epoch is taken, on test images where there are some. The columns ``seconds``,
    ``memory MB`` (the most that the process held of the host's memory) and ``images seen`` (with repetition) are those
    of the training.

    Args:
        run_dirs: Folders of the runs, or folders that hold some, such as a sweep's.

    Raises:
        UserError: No run is given, a folder neither is a run nor holds one, or a file in it is broken.
    """
    if not run_dirs:
        raise UserError("compare: name at least one run folder.")
    notes: list[str] = []
    folders = [folder for run in run_dirs for folder in _runs_of(Path(run), notes)]
    names = _short_names(folders)
    runs = [_read(folder) for folder in folders]
    rows = [_row(run, name) for run, name in zip(runs, names, strict=True)]
    used = {name: run.used for run, name in zip(runs, names, strict=True)}
    empty = {column for column in COLUMNS if all(row[column] is None for row in rows)}
    absent = empty & {*OPTIONAL} | (set() if empty >= {*OF_TARGETS} else empty & {*OF_CLASSES})
    accuracies = tuple(column for column in ACCURACIES if column not in absent)
    for folder, name in zip(folders, names, strict=True):
        missing = [column for column in accuracies if column not in used[name]]
        if missing:
            notes.append(f"{name} has no {' and no '.join(missing)} result; run: {command('evaluate', word(folder))}")
    columns = tuple(column for column in COLUMNS if column not in absent)
    rows = [{column: row[column] for column in columns} for row in rows]
    return Table(rows, notes + _differences(used), columns, accuracies, runs)


def pick(records: Sequence[Record], protocol: str, metric: str) -> Record | None:
    """Return the record to report: primary before others, test before hold-out, the latest epoch, the last written."""
    fitting = [(place, r) for place, r in enumerate(records) if (r["protocol"], r["metric"]) == (protocol, metric)]
    if not fitting:
        return None

    def worth(item: tuple[int, Record]) -> tuple[bool, bool, float, int]:
        place, record = item
        epoch = record.get("epoch")
        return bool(record.get("primary")), record["split"] == "test", -1 if epoch is None else epoch, place

    return max(fitting, key=worth)[1]


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").exists() or (folder / FILE).exists()


def _runs_of(folder: Path, notes: list[str]) -> list[Path]:
    """Return the folder, or the runs in it where it is none; a note names what is left out."""
    if _is_run(folder):
        return [folder, *([folder / "start"] if (folder / "start" / FILE).exists() else [])]
    inside = sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    runs = [run for entry in inside if _is_run(entry) for run in _runs_of(entry, notes)]
    if not runs:
        raise UserError(
            f"'{folder}' is not a run: it has neither config.yaml nor {FILE}, and holds no run; "
            "name the folder of a run."
        )
    if others := [entry.name for entry in inside if not _is_run(entry)]:
        notes.append(f"{folder}: {', '.join(others)} {'is' if len(others) == 1 else 'are'} no run and left out")
    return runs


def _read(folder: Path) -> Run:
    config_path = folder / "config.yaml"
    config = _read_config(config_path) if config_path.exists() else {}
    records = read_results(folder) if (folder / FILE).exists() else []
    found = {column: pick(records, protocol, metric) for column, (protocol, metric) in ACCURACIES.items()}
    used = {column: record for column, record in found.items() if record is not None}
    return Run(folder, config, records, used, read_atlas(folder / "figures"))


def _row(run: Run, name: str) -> dict[str, Any]:
    config, used = run.config, run.used
    rank = pick(run.records, "diagnostics", "rank_me")
    training: Mapping[str, Any] = pick(run.records, "training", "seconds") or {}
    reported: Mapping[str, Any] = next(iter(used.values()), run.records[0] if run.records else {})
    return {
        "run": name,
        "method": choice(config, "method"),
        "backbone": choice(config, "backbone"),
        "data": reported.get("data") or choice(config, "data"),
        "epochs": _first(reported.get("epoch"), _setting(config, "trainer", "max_epochs")),
        "seed": _first(config.get("seed"), reported.get("seed")),
        "split": next(iter(used.values()))["split"] if used else None,
        **{column: used[column]["value"] if column in used else None for column in ACCURACIES},
        "RankMe": rank["value"] if rank is not None else None,
        "seconds": training.get("value"),
        "memory MB": training.get("peak_memory_mb"),
        "images seen": _images_seen(training),
    }


def _images_seen(training: Mapping[str, Any]) -> int | None:
    """Return how many images went through the training, each counted as often as it came; whole batches only."""
    try:
        batch = int(training["batch_size"])
        return int(training["images"]) // batch * batch * int(training["epochs"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _differences(used: dict[str, dict[str, Record]]) -> list[str]:
    """Say where the runs were not measured in the same way."""
    notes = []
    for column in ACCURACIES:
        own = {run: records[column].conditions for run, records in used.items() if column in records}
        for detail in dict.fromkeys(name for conditions in own.values() for name in conditions):
            values = {run: conditions.get(detail) for run, conditions in own.items()}
            if len({json.dumps(value, sort_keys=True) for value in values.values()}) > 1:
                short = all(len(str(value)) <= WRITTEN for value in values.values())
                said = "is " + ", ".join(f"{v} in {r}" for r, v in values.items()) if short else "differs"
                notes.append(f"{column} was not measured in the same way: {detail} {said}")
    return notes


def _read_config(path: Path) -> dict[str, Any]:
    config = read_yaml(path)
    try:
        if isinstance(config, dict):
            found: dict[str, Any] = json.loads(json.dumps(config, default=str))  # names that are numbers become text
            return found
    except (TypeError, ValueError, RecursionError):
        pass  # names that are lists, values that hold themselves
    raise UserError(f"'{path}' is not a configuration; restore it or leave the run out.")


def _setting(config: Mapping[str, Any], group: str, name: str) -> Any:
    section = config.get(group)
    return section.get(name) if isinstance(section, dict) else None


def choice(config: Mapping[str, Any], group: str) -> str | None:
    """Return the name that was chosen in a group, such as the method."""
    value = config.get(group)
    value = _setting(config, group, "name") if isinstance(value, dict) else value
    return None if value is None else str(value)


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Name each run by the end of its path, as long as it takes to tell them apart; a start by its run, too."""
    parts = [folder.resolve().parts for folder in folders]
    parts = [(*p[:-2], "/".join(p[-2:])) if p[-1] == "start" else p for p in parts]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("compare: a run is named twice; name each folder once.")


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
