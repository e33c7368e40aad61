"""The network as a program of torch.export."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from selfsup.exporting.format import check_ending, export_format, quiet
from selfsup.exporting.trained import Features, Trained
from selfsup.writing import writing


@export_format("exported")
def write(run: Trained, draft: Path, target: Path) -> tuple[Features, str]:
    """Program of torch.export, which takes images in [0, 1]."""
    check_ending(target, ".pt2", "exported")
    with quiet():
        program = torch.export.export(
            run.with_normalization(), (run.images(2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        )
        content = io.BytesIO()  # torch's own writer ends the process where a disk is full
        torch.export.save(program, content)
        with writing(target):
            draft.write_bytes(content.getbuffer())
        read_back = torch.export.load(draft).module()
    return read_back, f"import torch\n\nnetwork = torch.export.load({str(target)!r}).module()  # for images in [0, 1]"
