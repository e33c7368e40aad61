"""DINO's head: a perceptron, a normalised bottleneck and a weight-normed layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.functional.arguments import full_precision
from selfsup.nn.heads import projection_head


class DINOHead(nn.Module):
    """Three linear layers with GELU, L2 normalisation, then cosines with ``output_dim`` directions.

    The last layer is weight-normed with its scale fixed at 1: its outputs are ``x·v / (‖x‖ ‖v‖)``, and gradients flow
    through the division by ``‖v‖``.

    Args:
        dim: Width of the backbone's feature.
        hidden_dim: Width of the two hidden layers.
        bottleneck_dim: Width of what is normalised.
        output_dim: Number ``K`` of outputs.
        batch_norm: Batch normalisation after the two hidden layers.

    Attributes:
        mlp: The linear layers; weights start from a truncated normal of deviation 0.02, biases at zero.
        weight: ``[K, bottleneck_dim]``, the directions ``v`` of the last layer, at any length.
    """

    def __init__(
        self, dim: int, hidden_dim: int, bottleneck_dim: int, output_dim: int, *, batch_norm: bool = False
    ) -> None:
        super().__init__()
        widths = [dim, hidden_dim, hidden_dim, bottleneck_dim]
        self.mlp = projection_head(widths, batch_norm=batch_norm, activation=nn.GELU)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.weight = nn.Parameter(torch.empty(output_dim, bottleneck_dim))
        bound = bottleneck_dim**-0.5  # as nn.Linear begins
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits ``[N,K]`` of features ``[N,D]``, in float32 under autocast too: temperatures are small."""
        x = self.mlp(features)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(F.normalize(full_precision(x), dim=1), F.normalize(full_precision(self.weight), dim=1))
