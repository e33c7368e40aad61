"""Prototypes: unit vectors that embeddings are compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.functional.arguments import full_precision


class CosinePrototypes(nn.Module):
    """Trainable directions without offsets: scores are cosines, and gradients flow through the division by lengths.

    Args:
        count: Number of prototypes ``K``.
        dim: Width ``D`` of an embedding.

    Attributes:
        weight: ``[K,D]``, at any length; uniform in ±D^(-1/2) at first.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim).uniform_(-(dim**-0.5), dim**-0.5))

    def forward(self, z: Tensor) -> Tensor:
        """Return the cosines ``[...,K]`` of embeddings ``[...,D]``, in float32 under autocast too."""
        with torch.autocast(z.device.type, enabled=False):
            return F.linear(F.normalize(full_precision(z), dim=-1), F.normalize(full_precision(self.weight), dim=1))


class Prototypes(nn.Module):
    """Trainable unit vectors (cluster centres) without offsets.

    Args:
        count: Number of prototypes ``K``.
        dim: Width ``D`` of an embedding.

    Attributes:
        weight: ``[K,D]``, rows of length 1 at first. An optimiser moves them off the sphere; ``normalize_`` puts them
            back.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1))

    def forward(self, z: Tensor) -> Tensor:
        """Return the scores ``[N,K]`` of embeddings ``[N,D]``, which are L2-normalised here; the prototypes are not.

        Scores are divided by small temperatures, so they are float32 under autocast too.
        """
        with torch.autocast(z.device.type, enabled=False):
            return F.linear(F.normalize(full_precision(z), dim=1), full_precision(self.weight))

    @torch.no_grad()
    def normalize_(self) -> None:
        """Give every prototype length 1, in place."""
        self.weight.copy_(F.normalize(self.weight, dim=1))
