"""Projection heads and predictors."""

from __future__ import annotations

import itertools
from typing import Literal

from torch import nn

LastNorm = Literal["none", "scale", "fixed"]


def projection_head(
    dims: list[int],
    *,
    bias: bool = True,
    last_bias: bool | None = None,
    batch_norm: bool = False,
    last_norm: LastNorm = "none",
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Build a perceptron: a linear layer between each two of ``dims`` and an activation after all but the last.

    Args:
        dims: Widths from the input to the output, at least two.
        bias: Whether the linear layers have biases.
        last_bias: The same for the last one; None is as ``bias``.
        batch_norm: Batch normalisation after every hidden linear layer.
        last_norm: Batch normalisation after the last layer: ``none``; ``scale``, with a scale and no offset (SimCLR);
            ``fixed``, with neither (MoCo v3, SimSiam).
        activation: Class of the activation.

    The output is not normalised: losses do that.
    """
    layers: list[nn.Module] = []
    last = len(dims) - 2
    for depth, (wide_in, wide_out) in enumerate(itertools.pairwise(dims)):
        with_bias = last_bias if depth == last and last_bias is not None else bias
        layers.append(nn.Linear(wide_in, wide_out, bias=with_bias))
        if depth < last:
            if batch_norm:
                layers.append(nn.BatchNorm1d(wide_out))
            layers.append(activation())
        elif last_norm != "none":
            norm = nn.BatchNorm1d(wide_out, affine=last_norm == "scale")
            if norm.affine:
                norm.bias.requires_grad_(False)
            layers.append(norm)
    return nn.Sequential(*layers)
