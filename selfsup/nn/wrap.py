"""Any torch module as a backbone: what it takes and gives is found out by running it once, and it has a name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from selfsup.errors import UserError, reason_of
from selfsup.nn.backbone import Backbone
from selfsup.shortage import lacks_memory
from selfsup.types import Normalization, Size, height_width


class PooledMap(nn.Module):
    """A network that ends in a feature map ``[B,D,S,S]``, with the map's mean as its feature.

    Args:
        network: Gives the map.
        num_features: ``D``.
    """

    def __init__(self, network: nn.Module, num_features: int) -> None:
        super().__init__()
        self.network, self.num_features = network, num_features

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the map."""
        features: Tensor = self.network(images)
        return features

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the spatial mean ``[B,D]`` of a map."""
        return features.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return its spatial mean ``[B,D]``."""
        return self.forward_head(self.forward_features(images))


def wrap_backbone(network: nn.Module, image_size: Size = 224, normalization: Normalization | None = None) -> Backbone:
    """Return a module of anybody's as a backbone; a ``Backbone`` is returned as it is.

    The module maps float ``[B,C,H,W]`` to features ``[B,D]``, or to a map ``[B,D,S,S]``, whose mean is then the
    feature. ``C``, ``D`` and the kind are found by running it once, in evaluation mode and without gradients.

    Args:
        network: The module; its weights are used as they are, not copied.
        image_size: Side of the images of that run in pixels, or (height, width).
        normalization: Statistics of the images it is made for, when known.

    Raises:
        UserError: It fails on such images, or gives something else.
    """
    if isinstance(network, Backbone):
        return network
    channels = _channels(network)
    features = _probe(network, channels, image_size)
    if features.ndim == 4:
        return Backbone(PooledMap(network, features.shape[1]), channels, normalization)
    last = list(network.modules())[-1]
    if isinstance(last, nn.Linear) and last.out_features == features.shape[1] and last.in_features > last.out_features:
        warnings.warn(
            f"{type(network).__name__} ends in a linear layer of {last.out_features} outputs, probably a classifier: "
            f"its outputs are taken for features. Put torch.nn.Identity() in its place to learn the {last.in_features} "
            "features below it.",
            stacklevel=2,
        )
    return Backbone(network, channels, normalization, dim=features.shape[1])


_given: list[Backbone] = []


def give_backbone(backbone: Backbone) -> None:
    """Let ``backbone.name=own`` stand for a network of this process from now on; copies of it are trained."""
    _given[:] = [copy.deepcopy(backbone)]


def own_backbone(in_channels: int | None = None, normalization: Normalization | None = None) -> Backbone:
    """Return a copy of the network that was given, for images of these channels and statistics where they are known.

    Raises:
        UserError: None was, or it takes images of other channels.
    """
    if not _given:
        raise UserError(
            "backbone.name=own is a network that was given from Python, which this process does not have: give it to "
            "selfsup.train(backbone=…), or to Run.backbone(network)."
        )
    backbone = copy.deepcopy(_given[0])
    if in_channels not in (None, backbone.in_channels):
        raise UserError(
            f"backbone: the network takes images of {backbone.in_channels} channels and the data has {in_channels}."
        )
    backbone.normalization = normalization or backbone.normalization
    return backbone


def _channels(network: nn.Module) -> int:
    """Return the channels that the first convolution takes; three where there is none."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels


def _probe(network: nn.Module, channels: int, image_size: Size) -> Tensor:
    reference = next(iter([*network.parameters(), *network.buffers()]), torch.zeros(()))
    dtype = reference.dtype if reference.is_floating_point() else torch.float32
    images = torch.zeros(2, channels, *height_width(image_size), dtype=dtype, device=reference.device)
    modes = {module: module.training for module in network.modules()}
    name = type(network).__name__
    try:
        with torch.no_grad():
            features = network.eval()(images)
    except Exception as error:  # a module of anybody's may raise anything
        if lacks_memory(error):
            raise
        raise UserError(
            f"backbone: {name} fails on images {list(images.shape)} ({reason_of(error)}); give a module that takes "
            "float [B,C,H,W], or set image_size to a side that it takes."
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if isinstance(features, Sequence) or not isinstance(features, Tensor):
        raise UserError(
            f"backbone: {name} gives a {type(features).__name__}; wrap it in a module whose forward returns one tensor "
            "of features [B,D], or a map [B,D,S,S]."
        )
    if features.ndim not in (2, 4) or len(features) != 2:
        raise UserError(
            f"backbone: {name} gives {list(features.shape)} for two images; a backbone gives features [B,D], or a map "
            "[B,D,S,S]."
        )
    return features
