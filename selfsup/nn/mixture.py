"""A mixture of neighbours by self-attention."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class NeighborMixture(nn.Module):
    """A small transformer that mixes a few vectors into one: what it makes of the first.

    A fixed pattern is added to each place. As in All4One's code it runs along the *features*: place 2i has
    sin(d / 10000^(2i / c)) and place 2i + 1 the cosine, for feature d, with c the number of places, made even.

    Args:
        dim: Width ``D``, a multiple of ``heads``.
        places: Vectors that are mixed, ``K``.
        layers, heads: Of the transformer, whose hidden layers have 2 D.
        dropout: In the transformer, while it trains.
    """

    def __init__(self, dim: int, places: int, layers: int = 3, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        even = places + places % 2
        rates = 10000 ** -(torch.arange(0, even, 2) / even)
        angles = rates[:, None] * torch.arange(dim)
        pattern = torch.stack([angles.sin(), angles.cos()], dim=1).flatten(0, 1)[:places]
        self.register_buffer("pattern", pattern, persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return ``[N,D]`` of vectors ``[N,K,D]``."""
        out: Tensor = self.encoder(vectors + cast(Tensor, self.pattern))
        return out[:, 0]
