"""Weights for detectron2's ResNets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from timm.models.resnet import ResNet
from torch import Tensor

from selfsup.errors import UserError
from selfsup.exporting.format import check_ending, export_format
from selfsup.exporting.trained import Features, Trained
from selfsup.nn import build_backbone
from selfsup.writing import writing


@export_format("detectron2")
def write(run: Trained, draft: Path, target: Path) -> tuple[Features, str]:
    """State dict under detectron2's keys."""
    network = run.backbone.network
    if not isinstance(network, ResNet) or run.stem() or run.config.name not in ("resnet50", "resnet101", "resnet152"):
        raise UserError(
            f"--format detectron2: its ResNets are 50, 101 and 152 layers deep with the ImageNet stem, and this is "
            f"'{run.config.name}' with small_stem={str(run.config.small_stem).lower()}."
        )
    check_ending(target, ".pth", "detectron2")
    content = {"model": to_detectron2(run.state), "__author__": "selfsup", "matching_heuristics": True}
    with writing(target):
        torch.save(content, draft)
    renamed = from_detectron2(torch.load(draft, weights_only=True)["model"])
    again = build_backbone(run.config, run.channels).eval()
    again.network.load_state_dict(again.network.state_dict() | renamed)
    mean, std = ([round(255 * v, 3) for v in values] for values in (run.normalization.mean, run.normalization.std))
    code = (
        f"# detectron2's settings for it; see docs/detectron2.md\nMODEL.WEIGHTS: {target}\nMODEL.PIXEL_MEAN: {mean}\n"
        f"MODEL.PIXEL_STD: {std}\nMODEL.RESNETS.STRIDE_IN_1X1: False\nINPUT.FORMAT: RGB"
    )
    return lambda images: again(run.normalized(images)), code


def to_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a ResNet's state dict from torchvision's keys to detectron2's.

    ``conv1`` becomes ``stem.conv1``; ``layerN.B.convM`` becomes ``res(N+1).B.convM``; ``bnM`` becomes
    ``convM.norm``; ``downsample.0`` and ``.1`` become ``shortcut`` and ``shortcut.norm``. The classifier and
    BatchNorm's counters of batches, which detectron2 does not have, are left out.

    Raises:
        ValueError: A key that no ResNet has.
    """
    return {
        _key(key): value
        for key, value in state.items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }


def from_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a ResNet's state dict from detectron2's keys to torchvision's: the inverse of :func:`to_detectron2`."""
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        place = [] if parts[0] == "stem" else [f"layer{int(parts[0].removeprefix('res')) - 1}", parts[1]]
        convolution, *rest = parts[1:] if parts[0] == "stem" else parts[2:]
        is_norm = rest[0] == "norm"
        if convolution == "shortcut":
            layer = f"downsample.{int(is_norm)}"
        else:
            layer = convolution.replace("conv", "bn") if is_norm else convolution
        renamed[".".join([*place, layer, rest[-1]])] = value
    return renamed


def _key(key: str) -> str:
    *place, parameter = key.split(".")
    if place and place[0].startswith("layer") and len(place) > 2:
        before = [f"res{int(place[0].removeprefix('layer')) + 1}", place[1]]
        layer = ".".join(place[2:])
    else:
        before, layer = ["stem"], ".".join(place)
    names = {f"conv{n}": f"conv{n}" for n in (1, 2, 3)} | {f"bn{n}": f"conv{n}.norm" for n in (1, 2, 3)}
    names |= {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}
    if layer not in names:
        raise ValueError(f"'{key}' is not a key of a ResNet with torchvision's names")
    return ".".join([*before, names[layer], parameter])
