"""The formats there are: each file of ``formats/`` registers one. What several of them need is here, too."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from selfsup.errors import UserError
from selfsup.exporting.trained import Features, Trained

#: How a format is written: (backbone, file to write, its later name) to (what a reader of it computes, how to load it).
Write = Callable[[Trained, Path, Path], tuple[Features, str]]

#: By name.
FORMATS: dict[str, Write] = {}


def export_format(name: str) -> Callable[[Write], Write]:
    """Decorate a function that writes a format, so that ``selfsup export --format NAME`` finds it.

    The first line of its documentation is what ``selfsup export --help`` says of it.
    """

    def add(write: Write) -> Write:
        FORMATS[name] = write
        return write

    return add


def loading(imports: list[str], network: list[str], read: str) -> str:
    """Return the Python that builds a network and fills it with the weights that the expression ``read`` gives."""
    return "\n".join([*imports, "", *network, f"network.load_state_dict({read})", "network.eval()"])


def check_ending(target: Path, ending: str, format: str) -> None:
    """Make sure that a file is named as the readers of its format expect.

    Raises:
        UserError: It ends otherwise.
    """
    if target.suffix != ending:
        raise UserError(f"--out: readers of --format {format} go by the ending; name it {target.stem}{ending}.")


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what the exporters say about themselves: that tracing is old, which pass they are in."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
