"""The findings of an audit, for a person to look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsup.report.drawing import PLAIN, RIGHT, WRONG, new_figure, show_image
from selfsup.report.plots import plain

if TYPE_CHECKING:
    from selfsup.eval.auditing import Audit, AuditedImages

SHEET_ROWS = 12  # of each kind
SHEET_NEIGHBOURS = 5


def contact_sheet(found: Audit, images: AuditedImages) -> Any:
    """Draw the clearest findings: pairs of near-duplicates, then images with their neighbours."""
    pairs, errors = found.duplicates[:SHEET_ROWS], found.label_errors[:SHEET_ROWS]
    columns = SHEET_NEIGHBOURS + 1
    pair_rows = -(-len(pairs) // 3)  # three pairs a row
    lines = max(1, pair_rows) + max(1, len(errors)) + 2
    figure = new_figure(1.5 * columns, 1.85 * (lines - 2) + 1.0)
    heights = [0.3, *[1.0] * max(1, pair_rows), 0.3, *[1.0] * max(1, len(errors))]
    grid = figure.add_gridspec(lines, columns, height_ratios=heights)

    def heading(line: int, text: str) -> None:
        axes = figure.add_subplot(grid[line, :])
        axes.axis("off")
        axes.text(0, 0.2, text, fontsize=11, weight="bold", transform=axes.transAxes)

    def picture(line: int, column: int, row: int, caption: str, frame: str | None) -> None:
        axes = figure.add_subplot(grid[line, column])
        show_image(axes, images.read(row), frame)
        axes.set_title(caption, fontsize=6.5, pad=2)

    def name(row: int) -> str:
        file, split, index = images.describe(row)
        return Path(file).name if Path(file).suffix else f"{split} {index}"

    heading(0, f"near-duplicates: {len(pairs)} most similar of {len(found.duplicates)} pairs")
    for place, pair in enumerate(pairs):
        line, column = 1 + place // 3, 2 * (place % 3)
        for side, row in enumerate((pair.first, pair.second)):
            similarity = f"cosine {pair.similarity:.3f}" if side else ""
            caption = f"{_short(name(row))}\n{_short(images.class_name(int(images.labels[row])))}\n{similarity}"
            picture(line, column + side, row, caption, PLAIN)
    start = 1 + max(1, pair_rows)
    heading(start, f"probable label errors: {len(errors)} clearest of {len(found.label_errors)}")
    for place, error in enumerate(errors, start=1):
        own, other = images.class_name(error.label), images.class_name(error.suggested)
        verdict = f"{_short(own)}\n{_short(other, 12)}? {100 * error.support:.0f} %"
        picture(start + place, 0, error.row, f"{_short(name(error.row))}\n{verdict}", None)
        for column, row in enumerate(error.neighbours[:SHEET_NEIGHBOURS], start=1):
            label = int(images.labels[row])
            frame = PLAIN if label < 0 else RIGHT if label == error.label else WRONG
            picture(start + place, column, row, _short(images.class_name(label)), frame)
    return figure


def _short(text: str, length: int = 17) -> str:
    """Return a text that is no wider than a picture, and holds no formula."""
    text = plain(text)
    return text if len(text) <= length else f"…{text[1 - length :]}"
