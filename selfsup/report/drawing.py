"""What the charts share: a figure, its file, pictures in frames, colours, and the charts there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsup.eval.record import Record
from selfsup.writing import replacing

if TYPE_CHECKING:
    from torch import Tensor

RIGHT, WRONG, PLAIN = "#2a9d4a", "#d1352b", "#888888"
BLUE, ORANGE = "#1f77b4", "#ff7f0e"


@dataclass(frozen=True)
class Evaluated:
    """An evaluation as the charts see it.

    Attributes:
        records: What was measured.
        shown: What figures show, by name: functions of ``selfsup.eval.shown``.
        classes: Names of the labels, or None.
    """

    records: Sequence[Record]
    shown: Mapping[str, Callable[[], Any]]
    classes: Sequence[str] | None = None

    def of(self, protocol: str) -> list[Record]:
        """Return the records of a protocol."""
        return [record for record in self.records if record.protocol == protocol]


Chart = Callable[[Evaluated], Any]
#: Charts of an evaluation by the name of their file; each gives a figure, or None where it has nothing to show.
CHARTS: dict[str, Chart] = {}


def chart(name: str) -> Callable[[Chart], Chart]:
    """Decorate a function from an evaluation to a figure, so that evaluations draw it as ``figures/NAME.png``."""

    def add(draw: Chart) -> Chart:
        CHARTS[name] = draw
        return draw

    return add


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of so many inches, without global state and without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: str | Path) -> Path:
    """Write a figure; the ending says the format.

    Raises:
        UserError: The file cannot be written.
    """
    path = Path(path)
    with replacing(path) as draft:
        figure.savefig(draft, format=path.suffix.removeprefix("."))
    return path


def show_image(axes: Any, image: Tensor, frame: str | None) -> None:
    """Show a stored image ``[C,H,W]`` in a frame of a colour, or in none; of more channels than three the first."""
    from selfsup.unit_range import shown_channels, unit_range

    image = shown_channels(image)
    eight_bits = image.element_size() == 1
    pixels = (image if eight_bits else unit_range(image)).permute(1, 2, 0).squeeze(-1).numpy()
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255 if eight_bits else 1)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(frame is not None)
        spine.set_color(frame)
        spine.set_linewidth(2.5)
        spine.set_linestyle((0, (2, 1)) if frame == WRONG else "-")  # for eyes that see no red and green


def class_name(label: int, classes: Sequence[str] | None) -> str:
    """Return the name of a label, or its number where it has none."""
    return classes[label] if classes is not None and label < len(classes) else str(label)


def class_colour(place: int, count: int) -> Any:
    """Return one of ``count`` colours."""
    import matplotlib

    if count <= 20:
        return matplotlib.colormaps["tab10" if count <= 10 else "tab20"](place)
    return matplotlib.colormaps["gist_rainbow"](place / count)
