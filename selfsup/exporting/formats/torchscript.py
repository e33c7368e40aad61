"""The network as a traced TorchScript."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, cast

import torch

from selfsup.exporting.format import export_format, quiet
from selfsup.exporting.trained import Features, Trained
from selfsup.writing import writing


@export_format("torchscript")
def write(run: Trained, draft: Path, target: Path) -> tuple[Features, str]:
    """TorchScript, which takes images in [0, 1]."""
    with quiet():
        script = cast(Any, torch.jit)  # has no types
        program = io.BytesIO()  # torch's own writer ends the process where a disk is full
        script.save(script.trace(run.with_normalization(), (run.images(2),)), program)
        with writing(target):
            draft.write_bytes(program.getbuffer())
        read_back: Features = script.load(str(draft))
    return read_back, f"import torch\n\nnetwork = torch.jit.load({str(target)!r})  # for images in [0, 1]"
