"""Everything that draws and writes for a person: charts, tables, the page of a comparison. It reads records."""

import selfsup.report.charts  # noqa: F401 - fills CHARTS
from selfsup.report.charts.cka import cka_picture
from selfsup.report.charts.contact_sheet import contact_sheet
from selfsup.report.charts.patches import patches_picture
from selfsup.report.charts.similarity import similarity_picture
from selfsup.report.charts.training import training_curves
from selfsup.report.compare import compare, save_cka
from selfsup.report.comparison import Table
from selfsup.report.drawing import CHARTS, Evaluated, chart, draw_figures, save
from selfsup.report.lines import record_line
from selfsup.report.notebook import Comparison

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
    "record_line",
    "save",
    "save_cka",
    "similarity_picture",
    "training_curves",
]
