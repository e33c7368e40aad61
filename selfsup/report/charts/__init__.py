"""The charts of an evaluation: one file each. Importing this registers all of them."""

import warnings
from pathlib import Path

from selfsup.registry import import_files
from selfsup.report.drawing import CHARTS, Evaluated, save

__all__ = ["CHARTS", "draw_figures"]

import_files(__name__, __path__)


def draw_figures(evaluated: Evaluated, folder: str | Path) -> list[Path]:
    """Draw every chart that has something to show, and return the files.

    Whatever goes wrong with a picture becomes a warning: it must not cost the numbers.
    """
    drawn = []
    for name, draw in CHARTS.items():
        try:
            figure = draw(evaluated)
            if figure is not None:
                drawn.append(save(figure, Path(folder) / f"{name}.png"))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(f"figures/{name}.png could not be drawn ({reason}); the results are kept.", stacklevel=2)
    return drawn
