"""Stored pixels as numbers in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

#: What is white of whole numbers; floating-point pixels are in [0, 1] already.
WHITE = {torch.uint8: 255, torch.uint16: 65535}


def unit_range(images: Tensor) -> Tensor:
    """Return pixels uint8, uint16 or float in [0, 1] of any shape as float32 in [0, 1]: black is 0, white is 1."""
    white = WHITE.get(images.dtype)
    return images.float() if white is None else images.float().div_(white)


def shown_channels(images: Tensor) -> Tensor:
    """Return what a picture shows of images ``[…,C,H,W]``: the first three channels, as colours, or else the first."""
    return images[..., : 3 if images.shape[-3] >= 3 else 1, :, :]
