"""Everything that draws and writes for a person: charts, tables, the page of a comparison. It reads records."""

from typing import TYPE_CHECKING

from selfsup.offered import offered

if TYPE_CHECKING:
    from selfsup.report.charts import CHARTS, draw_figures
    from selfsup.report.charts.cka import cka_picture
    from selfsup.report.charts.contact_sheet import contact_sheet
    from selfsup.report.charts.patches import patches_picture
    from selfsup.report.charts.similarity import similarity_picture
    from selfsup.report.charts.training import training_curves
    from selfsup.report.comparing import compare, report, save_aligned, save_cka, save_comparison
    from selfsup.report.comparison import Table, read_table
    from selfsup.report.drawing import Evaluated, chart, save
    from selfsup.report.estimates import seeds_table
    from selfsup.report.lines import record_line, result_table
    from selfsup.report.notebook import Comparison
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "CHARTS",
    "Comparison",
    "Evaluated",
    "Table",
    "chart",
    "cka_picture",
    "compare",
    "contact_sheet",
    "draw_figures",
    "patches_picture",
    "read_table",
    "record_line",
    "report",
    "result_table",
    "save",
    "save_aligned",
    "save_cka",
    "save_comparison",
    "seeds_table",
    "similarity_picture",
    "training_curves",
]
