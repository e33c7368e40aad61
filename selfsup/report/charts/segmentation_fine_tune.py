"""Images, their true masks, and those of the fine-tuned network."""

from __future__ import annotations

from typing import Any

from selfsup.report.charts.segmentation import segmentation_panels
from selfsup.report.drawing import Evaluated, chart


@chart("segmentation_fine_tune")
def segmentation_fine_tune_chart(evaluated: Evaluated) -> Any:
    """Draw some scored images with their masks."""
    found = evaluated.shown.get("segmentation_fine_tune")
    return None if found is None else segmentation_panels(found())
