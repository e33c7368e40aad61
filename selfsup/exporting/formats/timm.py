"""Weights for timm."""

from __future__ import annotations

from pathlib import Path

import timm
import torch

from selfsup.errors import UserError
from selfsup.exporting.format import export_format, loading
from selfsup.exporting.trained import Features, Trained
from selfsup.writing import writing


@export_format("timm")
def write(run: Trained, draft: Path, target: Path) -> tuple[Features, str]:
    """State dict under timm's keys."""
    if not timm.is_model(run.config.name):
        raise UserError(
            f"--format timm: '{run.config.name}' is a network of this toolkit that timm does not have; "
            "use --format safetensors, onnx or exported."
        )
    with writing(target):
        torch.save(run.state, draft)

    def code(path: Path) -> str:
        read = f"torch.load({str(path)!r}, weights_only=True)"
        return loading(["import timm", "import torch"], run.timm_network(), read)

    return run.execute(code(draft)), code(target)
