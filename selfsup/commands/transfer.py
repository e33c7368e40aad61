"""Evaluate a network on several datasets and print one table.

  selfsup transfer RUN data=NAME,NAME [--only PROTOCOL,PROTOCOL] [key=value …]
  selfsup transfer RUN data=all_small

all_small stands for every small source that has a name; those that are not on the disk are named and left out.

Each dataset gives its own training part to the probes. The tables go to transfer/ in the checkpoint's run, the
records and figures of a dataset to a folder of its name there.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from selfsup.commands import EVALUATION, Parser, checkpoint_settings, chosen_protocols
from selfsup.errors import UserError
from selfsup.shortage import EVALUATION as LESS
from selfsup.shortage import lacks_memory, sentence
from selfsup.tables import console_table, csv_table, markdown_table
from selfsup.writing import check_output, replace_text

if TYPE_CHECKING:
    from selfsup.eval import Record
    from selfsup.opened import Opened

PROTOCOLS = ("knn", "linear_probe")
ALL_SMALL = "all_small"
COLUMNS = (
    "data",
    "protocol",
    "metric",
    "split",
    "value",
    "std",
    "interval",
    "image_size",
    "train_images",
    "holdout_images",
    "test_images",
    "seconds",
)


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.groups = EVALUATION
    parser.add_argument("--only", metavar="NAMES", help="run these protocols (default: knn,linear_probe)")


def run(arguments: Namespace) -> int:
    """Do the work and return the exit code."""
    protocols = chosen_protocols(arguments)
    _datasets(arguments.settings)
    table = transfer(checkpoint_settings(arguments), protocols or PROTOCOLS)
    print(table)
    print(f"\nsaved: {table.folder}/transfer.md, .csv")
    return 2 if table.short else 0


def _datasets(overrides: Sequence[str]) -> list[str]:
    given = [override for override in overrides if override.startswith("data=")]
    names = [name for name in given[-1].removeprefix("data=").split(",") if name] if given else []
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"transfer: name the datasets, each once, data=digits,fashion_mnist, or all small ones, data={ALL_SMALL}."
        )
    return names


@dataclass(frozen=True)
class TransferTable:
    """What a transfer found.

    Attributes:
        records: By dataset and protocol, the number to report: the primary one where there are several. The weights
            that the training started from, where there were some, follow as ``DATASET, at the start``.
        left_out: Datasets that could not be evaluated, and why.
        folder: Where the tables lie; each dataset's ``results.json`` and figures are in a folder of its name below.
        short: Whether there was too little memory for one of those that are left out.
    """

    records: dict[str, dict[str, Record]]
    folder: Path
    left_out: dict[str, str] = field(default_factory=dict)
    short: bool = False

    def __str__(self) -> str:
        return "\n".join([console_table(*self._cells()), *(f"left out: {note}" for note in self._notes())])

    def save(self) -> None:
        """Write ``transfer.md`` and ``transfer.csv`` (values as fractions)."""
        text = markdown_table(*self._cells(), [f"left out: {note}" for note in self._notes()])
        replace_text(self.folder / "transfer.md", text)
        flat = [{**record, "data": name} for name, found in self.records.items() for record in found.values()]
        rows = ([record.get(column) for column in COLUMNS] for record in flat)
        replace_text(self.folder / "transfer.csv", csv_table(COLUMNS, rows))

    def _notes(self) -> list[str]:
        return [f"{name}: {reason}" for name, reason in self.left_out.items()]

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        protocols = list(dict.fromkeys(protocol for found in self.records.values() for protocol in found))
        rows = []
        for name, found in self.records.items():
            first = next(iter(found.values()))
            numbers = [found[protocol].text(1) if protocol in found else "–" for protocol in protocols]
            scored = f"{first[f'{first.split}_images']} ({first.split})"
            rows.append([name, str(first["train_images"]), scored, *numbers])
        return ["data", "trained on", "tested on", *protocols], rows


def transfer(overrides: Sequence[str], protocols: Sequence[str] = PROTOCOLS, *, progress: bool = True) -> TransferTable:
    """Evaluate one network on several datasets, each with its own training part, and put the numbers in one table.

    A dataset that cannot be read or evaluated is left out, and the table says why. The records of a dataset go to
    ``transfer/NAME`` in the checkpoint's run (in ``runs`` where it has none, in ``run_dir`` itself where that is given)
    and not to the run's own ``results.json``, which is about the data that the network was trained on.

    Args:
        overrides: As for ``load_evaluate_config``, with several names in ``data``: ``["checkpoint=RUN",
            "data=digits,fashion_mnist"]``. Other settings hold for every dataset.
            ``data=all_small`` names every source that calls itself small.
        protocols: Some of ``selfsup.eval.PROTOCOLS``.
        progress: Show progress bars.

    Raises:
        UserError: ``data`` or ``checkpoint`` is missing, a dataset is named twice, or none could be evaluated.
    """
    names = _datasets(overrides)
    from selfsup.engine.evaluation import evaluate_opened, open_evaluation
    from selfsup.eval.record import AT_START
    from selfsup.registry import sources

    if names == [ALL_SMALL]:
        names = [name for name in sources if sources[name].config.small]
        if progress:
            print(f"data={ALL_SMALL}: {', '.join(names)}", flush=True)
    others = [override for override in overrides if not override.startswith("data=")]
    records: dict[str, dict[str, Record]] = {}
    left_out: dict[str, str] = {}
    short = False
    folder: Path | None = None
    opened: Opened | None = None
    for name in names:
        try:
            config, opened = open_evaluation([*others, f"data={name}"], opened)
            if folder is None:
                folder = Path(config.run_dir or Path(opened.run or "runs") / "transfer").expanduser()
                check_output(folder, "run_dir")
            config.run_dir = str(folder / name)
            found = evaluate_opened(config, opened, protocols, progress=progress)
        except Exception as error:  # the records of the other datasets are not lost to the failure of one
            short = short or lacks_memory(error)
            left_out[name] = _why(error)
            continue
        for row, at in ((name, None), (f"{name}, at the start", AT_START)):
            chosen = {
                protocol: max(own, key=lambda record: bool(record.get("primary")))
                for protocol in protocols
                if (own := [r for r in found if r["protocol"] == protocol and r.get("at") == at])
            }
            if chosen:
                records[row] = chosen
        TransferTable(records, folder, left_out).save()  # what is found is kept, whatever follows
    if folder is None or not records:
        raise UserError(f"transfer: no dataset could be evaluated: {next(iter(left_out.values()))}")
    table = TransferTable(records, folder, left_out, short)
    table.save()
    return table


def _why(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    return sentence("the evaluation", error, LESS) if lacks_memory(error) else f"{type(error).__name__}: {error}"
