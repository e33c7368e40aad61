"""The charts of an evaluation: one file each. Importing this registers all of them."""

import warnings
from pathlib import Path

from selfsup.registry import import_files
from selfsup.report.atlas import FILE as ATLAS
from selfsup.report.atlas import save_atlas
from selfsup.report.drawing import CHARTS, Evaluated, save

__all__ = ["CHARTS", "draw_figures"]

import_files(__name__, __path__)


def draw_figures(evaluated: Evaluated, folder: str | Path) -> list[Path]:
    """Draw every chart that has something to show, write the map of the features for the page, and return the files.

    Whatever goes wrong with a picture becomes a warning: it must not cost the numbers.
    """
    folder = Path(folder)
    drawn = []
    for name in [f"{name}.png" for name in CHARTS] + [ATLAS]:
        try:
            path = _save_atlas(evaluated, folder) if name == ATLAS else _draw(evaluated, folder / name)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(f"figures/{name} could not be drawn ({reason}); the results are kept.", stacklevel=2)
        else:
            drawn += [] if path is None else [path]
    return drawn


def _draw(evaluated: Evaluated, path: Path) -> Path | None:
    figure = CHARTS[path.stem](evaluated)
    return None if figure is None else save(figure, path)


def _save_atlas(evaluated: Evaluated, folder: Path) -> Path | None:
    return save_atlas(evaluated.shown["feature_map"](), folder) if "feature_map" in evaluated.shown else None
