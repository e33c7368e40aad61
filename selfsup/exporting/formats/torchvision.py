"""Weights for torchvision's ResNets."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
from timm.models.resnet import ResNet

from selfsup.errors import UserError
from selfsup.exporting.format import export_format, loading
from selfsup.exporting.trained import Features, Trained
from selfsup.writing import writing


@export_format("torchvision")
def write(run: Trained, draft: Path, target: Path) -> tuple[Features, str]:
    """State dict under torchvision's keys."""
    name = run.config.name
    make = getattr(torchvision.models, name, None)
    refused = f"--format torchvision: torchvision has no ResNet like '{name}'"
    if not callable(make) or not isinstance(run.backbone.network, ResNet):
        raise UserError(f"{refused}; use --format timm, safetensors, onnx or exported.")
    if make(weights=None).state_dict().keys() - {"fc.weight", "fc.bias"} != run.state.keys():
        raise UserError(f"{refused} with backbone.kwargs={run.config.kwargs}; use --format timm.")
    with writing(target):
        torch.save(run.state, draft)

    def code(path: Path) -> str:
        network = [f"network = torchvision.models.{name}()", "network.fc = torch.nn.Identity()", *run.stem()]
        read = f"torch.load({str(path)!r}, weights_only=True)"
        return loading(["import torch", "import torchvision"], network, read)

    return run.execute(code(draft)), code(target)
