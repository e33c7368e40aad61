"""Runs side by side: a table, a file for a spreadsheet, a chart, and a page that shows all there is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selfsup.report.comparison import Table, read_table
from selfsup.report.drawing import save
from selfsup.tables import csv_table
from selfsup.writing import replace_text

if TYPE_CHECKING:
    from selfsup.eval.feature_alignment import Aligned
    from selfsup.eval.kernel_alignment import CkaTable


def compare(run_dirs: Sequence[str | Path], output: str | Path | None = None) -> Table:
    """Put the results of several runs in one table; see :func:`read_table`.

    Args:
        run_dirs: Folders of the runs.
        output: Folder for ``comparison.md``, ``.csv``, ``.html`` and, where there are accuracies, ``.png``; or None.

    Raises:
        UserError: As :func:`read_table`.
    """
    table = read_table(run_dirs)
    if output is not None:
        save_comparison(table, output)
    return table


def save_comparison(table: Table, output: str | Path) -> None:
    """Write the files of a comparison to a folder; see :func:`compare`."""
    from selfsup.report.charts.accuracies import accuracies_chart  # these draw, which takes a second to import
    from selfsup.report.compared import compared, with_legend
    from selfsup.report.page import write_report

    folder = Path(output)
    replace_text(folder / "comparison.md", table.markdown())
    replace_text(folder / "comparison.csv", table.csv())
    (folder / "comparison.png").unlink(missing_ok=True)
    runs = compared(table)
    for chart in accuracies_chart(runs):
        save(with_legend(chart, runs), folder / "comparison.png")
    write_report(table, folder / "comparison.html")


def report(run: str | Path, path: str | Path | None = None) -> Path:
    """Write the page of one run and return its file.

    Args:
        run: Its folder.
        path: The file; None is ``report.html`` in the folder.

    Raises:
        UserError: As :func:`read_table`.
    """
    from selfsup.report.page import write_report

    return write_report(read_table([run]), Path(run) / "report.html" if path is None else path)


def save_cka(table: CkaTable, folder: str | Path) -> None:
    """Write ``cka.csv`` and ``cka.png``."""
    from selfsup.report.charts.cka import cka_picture

    folder = Path(folder)
    rows = ([name, *row] for name, row in zip(table.names, table.values.tolist(), strict=True))
    replace_text(folder / "cka.csv", csv_table(["", *table.names], rows))
    save(cka_picture(table), folder / "cka.png")


def save_aligned(found: Sequence[Aligned], folder: str | Path) -> None:
    """Write ``align.csv`` and ``align.png``."""
    from selfsup.report.charts.alignment import aligned_picture

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = ("source", "target", "cosine", "other", "matched", "images", "fitted_on")
    rows = ([str(getattr(one, name)) for name in names] for one in found)
    (folder / "align.csv").write_text(csv_table(names, rows), "utf-8", newline="")
    save(aligned_picture(found), folder / "align.png")
