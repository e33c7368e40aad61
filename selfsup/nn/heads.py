"""Projection heads."""

from __future__ import annotations

import itertools

from torch import nn


def projection_head(
    dims: list[int], *, bias: bool = True, batch_norm: bool = False, last_batch_norm: bool = False
) -> nn.Sequential:
    """Build a perceptron: a linear layer between each two of ``dims`` and a ReLU after all but the last.

    Args:
        dims: Widths from the input to the output, at least two.
        bias: Whether the linear layers have biases.
        batch_norm: Batch normalisation after every hidden linear layer.
        last_batch_norm: Batch normalisation after the last layer, with a scale and no offset (SimCLR).

    The output is not normalised: losses do that.
    """
    layers: list[nn.Module] = []
    last = len(dims) - 2
    for depth, (wide_in, wide_out) in enumerate(itertools.pairwise(dims)):
        layers.append(nn.Linear(wide_in, wide_out, bias=bias))
        if depth < last:
            if batch_norm:
                layers.append(nn.BatchNorm1d(wide_out))
            layers.append(nn.ReLU(inplace=True))
        elif last_batch_norm:
            norm = nn.BatchNorm1d(wide_out)
            norm.bias.requires_grad_(False)
            layers.append(norm)
    return nn.Sequential(*layers)
