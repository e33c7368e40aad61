"""Parts of methods that learn from the cells of a feature map: heads, an encoder of maps, pixel propagation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.functional.arguments import full_precision
from selfsup.nn.backbone import Backbone
from selfsup.types import Size, height_width, size_words


def dense_head(dims: list[int], *, last_bias: bool = True, batch_norm: bool = False) -> nn.Sequential:
    """Build a perceptron of each cell: a 1×1 convolution between each two of ``dims``, a ReLU after all but the last.

    Args:
        dims: Channels from the input to the output, at least two.
        last_bias: Whether the last convolution has a bias.
        batch_norm: Batch normalisation after every hidden convolution, over images and cells.

    The output is not normalised: losses do that.
    """
    layers: list[nn.Module] = []
    for depth, (wide_in, wide_out) in enumerate(itertools.pairwise(dims)):
        layers.append(nn.Conv2d(wide_in, wide_out, 1, bias=last_bias or depth < len(dims) - 2))
        if depth < len(dims) - 2:
            if batch_norm:
                layers.append(nn.BatchNorm2d(wide_out))
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class DenseEncoder(nn.Module):
    """A backbone with a head of its map and heads of its pooled feature, after one pass of the backbone.

    Args:
        backbone: Its map goes to ``head``; the map's spatial mean is the pooled feature.
        head: Takes the map ``[B,D,S,S]``.
        pooled_heads: Each takes ``[B,D]``.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, *pooled_heads: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head, self.pooled_heads = backbone, head, nn.ModuleList(pooled_heads)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the backbone's map, the head's map, and the output of each pooled head."""
        features = self.backbone.forward_dense(images)
        pooled = features.mean(dim=(2, 3))
        return (features, self.head(features), *(head(pooled) for head in self.pooled_heads))


class PixelPropagation(nn.Module):
    r"""PixPro's propagation module: each cell becomes a mixture of the cells that are like it.

    .. math:: y_i = \sum_j \max(\cos(x_i, x_j), 0)^\gamma \, g(x_j) / \lVert g(x_j) \rVert

    with g one 1×1 convolution. The weights are not divided by their sum, which does not matter to a loss that
    normalises y. In the authors' code, too, g's output is normalised; the paper's equation 3 does not say so.

    Args:
        dim: Channels of x and y.
        gamma: γ, at least 1; a larger one lets fewer cells take part.

    Raises:
        ValueError: ``gamma`` below 1, which has no gradient at cosine 0.

    Source:
        Xie et al., "Propagate Yourself: Exploring Pixel-Level Consistency for Unsupervised Visual Representation
        Learning", 2021, equations 3 and 4.
    """

    def __init__(self, dim: int, gamma: float = 2.0) -> None:
        super().__init__()
        if gamma < 1:
            raise ValueError(f"gamma must be at least 1, not {gamma}")
        self.gamma = gamma
        self.transform = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return y for a map ``[B,D,S,S]``, not normalised; float32 at least, with autocast off."""
        with torch.autocast(x.device.type, enabled=False):
            cells = F.normalize(full_precision(x).flatten(2), dim=1)
            weights = F.relu(cells.transpose(1, 2) @ cells).pow(self.gamma)  # symmetric [B,S²,S²]
        transformed = self.transform(x)
        with torch.autocast(x.device.type, enabled=False):
            return (F.normalize(full_precision(transformed).flatten(2), dim=1) @ weights).view_as(x)


def check_dense(backbone: Backbone, sizes: Sequence[Size]) -> None:
    """Make sure that views of these sizes have maps whose cells can be compared, by one pass of an empty image.

    Raises:
        UserError: Views of several sizes, a map of one cell or one that is not square, or a network with a layer
            between its map and its feature.
    """
    if len(set(sizes)) > 1:
        given = ", ".join(size_words(size) for size in dict.fromkeys(sizes))
        raise UserError(f"augment.sizes gives views of {given} pixels; this method needs one size.")
    training = backbone.training
    parameter = next(backbone.parameters())
    with torch.no_grad():
        shape = (1, backbone.in_channels, *height_width(sizes[0]))
        image = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
        channels, height, width = backbone.eval().forward_dense(image).shape[1:]
    backbone.train(training)
    if height != width or height < 2:
        raise UserError(
            f"backbone: the map of views of {size_words(sizes[0])} pixels is {height}×{width} and this method "
            "compares the cells of a square one; take square or larger views (data.image_size, augment.sizes) or a "
            "network of smaller stride."
        )
    if channels != backbone.dim:
        raise UserError(
            f"backbone: the map has {channels} channels and the pooled feature {backbone.dim}; choose a network "
            "without a layer between the two, such as a ResNet."
        )
