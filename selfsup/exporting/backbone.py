"""Take a trained backbone away: files that other programs read, each read back and compared before it counts."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from selfsup.errors import UserError
from selfsup.exporting import formats  # noqa: F401 - each registers itself
from selfsup.exporting.format import FORMATS
from selfsup.exporting.trained import Features, Trained
from selfsup.registry import nearest
from selfsup.writing import check_output

#: Largest difference of a feature from that of the backbone, as a fraction of the largest feature.
TOLERANCE = 1e-4


def export(checkpoint: str | Path, format: str, out: str | Path) -> tuple[Path, str]:
    """Write the backbone of a run in another program's format, read it back and compare its features.

    ``timm``, ``torchvision`` and ``detectron2`` are state dicts under the keys of those libraries, for normalised
    images. ``safetensors`` is a folder with ``model.safetensors`` and a model card, ``README.md``. ``onnx``,
    ``torchscript`` and ``exported`` hold the computation too: any number of images of the size the run evaluated at,
    in [0, 1], which they normalise.

    Args:
        checkpoint: A run folder or a checkpoint.
        format: One of ``selfsup.exporting.FORMATS``.
        out: File to write; for ``safetensors`` a folder. It must not exist.

    Returns:
        What was written, and the Python that loads it.

    Raises:
        UserError: No such format, a network that the format has no place for, a library that is missing, something at
            ``out`` already, or features that differ by more than 1e-4 of the largest.
    """
    if format not in FORMATS:
        raise UserError(f"--format: there is no '{format}'.{nearest(format, FORMATS)}")
    target = Path(out)
    if target.exists():
        raise UserError(f"--out: {target} exists and is not overwritten; choose another name.")
    run = Trained(checkpoint)
    check_output(target, "--out", sum(value.nbytes for value in run.state.values()))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".exporting-") as folder:
        # the ending stays: some readers go by it
        draft = Path(folder) / target.name
        read_back, code = FORMATS[format](run, draft, target)
        _compare(run, read_back, f"{format} of {checkpoint}")
        os.replace(draft, target)
    return target, code


def _compare(run: Trained, read_back: Features, what: str) -> None:
    # other numbers of images than the one a graph was traced with
    for count in (1, 3):
        images = run.images(count)
        with torch.inference_mode():
            expected, found = run.backbone(run.normalized(images)), read_back(images)
        if found.shape != expected.shape or not torch.isfinite(found).all():
            raise UserError(f"{what}: read back it gives {list(found.shape)} or no numbers; nothing was written.")
        difference = ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()
        if difference > TOLERANCE:
            raise UserError(f"{what}: read back its features differ by {difference:.1e}; nothing was written.")
