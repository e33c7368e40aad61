"""Runs side by side, as a notebook shows them."""

from __future__ import annotations

import base64
import html
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from selfsup.report.comparison import Table
from selfsup.report.estimates import estimate, seed_groups

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Comparison:
    """What a comparison of runs found; a notebook shows it as a table and a chart.

    Attributes:
        found: The results of each run.
        chart: The accuracies as PNG; nothing where there are none.
    """

    found: Table
    chart: bytes

    @property
    def notes(self) -> list[str]:
        """What a reader has to know: missing results, differences in how they were measured."""
        return self.found.notes

    @property
    def runs(self) -> pd.DataFrame:
        """A row for each run; accuracies are fractions."""
        import pandas as pd

        return pd.DataFrame(self.found.rows, columns=list(self.found.columns))

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row for all runs that differ in the seed alone: how many, means of the accuracies, deviations."""
        import pandas as pd

        rows = []
        for group in seed_groups(self.found):
            row: dict[str, object] = {"run": group.label, "method": self.found.rows[group.places[0]]["method"]}
            row["runs"] = len(group.places)
            for column in self.found.accuracies:
                number = estimate(self.found, group.places, column)
                row[column] = row[f"{column} std"] = math.nan
                if number is not None:
                    row[column] = number.value
                    if number.high is not None and len(group.places) > 1:
                        row[f"{column} std"] = number.high - number.value
            rows.append(row)
        found = pd.DataFrame(rows)
        return found.drop(columns=[name for name in found if name.endswith(" std") and found[name].isna().all()])

    def __repr__(self) -> str:
        return str(self.found)

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        source = f"data:image/png;base64,{base64.b64encode(self.chart).decode()}"
        return (
            str(self.table.to_html(index=False, na_rep="–", float_format="{:.3f}".format, border=0))
            + (f"<ul>{notes}</ul>" if notes else "")
            + (f"<img alt='accuracies' style='max-width:100%' src='{source}'>" if self.chart else "")
        )
