"""A trained backbone and what its checkpoint says of it, as the formats take it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.nn import Backbone, BackboneConfig
from selfsup.opened import open_network
from selfsup.types import Normalization, height_width

Features = Callable[[Tensor], Tensor]


class NormalizedBackbone(nn.Module):
    """A backbone that takes images as they are: float ``[B,C,H,W]`` in [0, 1], normalised inside, to ``[B,D]``.

    This is what the formats with a graph (ONNX, TorchScript, exported program) hold, so that nobody normalises twice
    or not at all.

    Args:
        backbone: The network.
        normalization: What its training images were normalised with.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(normalization.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(normalization.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return pooled features of images in [0, 1]."""
        return cast(Tensor, self.backbone((images - self.mean) / self.std))


class Trained:
    """The backbone of a run.

    Args:
        checkpoint: A run folder or a checkpoint.

    Raises:
        UserError: It cannot be opened, or was not trained here.
    """

    def __init__(self, checkpoint: str | Path) -> None:
        opened = open_network(checkpoint)
        if opened.config is None or opened.run is None:
            raise UserError(f"{checkpoint} was not trained here; export writes the backbone of a run.")
        assert isinstance(opened.network, Backbone)
        assert opened.normalization is not None
        assert opened.image_size is not None
        self.opened, self.folder, self.settings = opened, opened.run, opened.config
        self.config = BackboneConfig(**opened.config["backbone"])
        self.backbone = opened.network
        self.channels = opened.network.in_channels
        self.normalization = opened.normalization
        self.image_size = opened.image_size

    @property
    def state(self) -> dict[str, Tensor]:
        """The weights of the network, contiguous, under timm's keys."""
        return {key: value.contiguous() for key, value in self.backbone.network.state_dict().items()}

    def with_normalization(self) -> NormalizedBackbone:
        """The network for images in [0, 1]."""
        return NormalizedBackbone(self.backbone, self.normalization).eval()

    def images(self, count: int) -> Tensor:
        """Noise in [0, 1] to compare features on: ``[count,C,h,w]``."""
        shape = (count, self.channels, *height_width(self.image_size))
        return torch.rand(shape, generator=torch.Generator().manual_seed(count))

    def normalized(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the network takes them."""
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.normalization.mean, self.normalization.std))
        return (images - mean) / std

    def stem(self) -> list[str]:
        """Lines of Python that give a library's ResNet the stem of this one."""
        network = self.backbone.network
        if not isinstance(network, ResNet) or not isinstance(network.conv1, nn.Conv2d):
            return []
        first, lines = network.conv1, []
        if first.kernel_size != (7, 7) or first.in_channels != 3:
            size, stride, edge = first.kernel_size[0], first.stride[0], first.padding[0]
            lines.append(
                f"network.conv1 = torch.nn.Conv2d({first.in_channels}, {first.out_channels}, {size}, "
                f"stride={stride}, padding={edge}, bias=False)"
            )
        if isinstance(network.maxpool, nn.Identity):
            lines.append("network.maxpool = torch.nn.Identity()")
        return lines

    def timm_network(self) -> list[str]:
        """Lines of Python that build the network with timm."""
        # a dictionary, as the names in it come from a file and the lines are executed
        more = f", **{self.backbone.arguments!r}" if self.backbone.arguments else ""
        return [
            f"network = timm.create_model({self.config.name!r}, num_classes=0, in_chans={self.channels}{more})",
            *self.stem(),
        ]

    def execute(self, code: str) -> Features:
        """Run the very lines that are printed for the user, so that they are known to work."""
        names: dict[str, Any] = {}
        exec(code, names)  # noqa: S102 our own lines; what comes from the checkpoint stands in them as literals
        network: nn.Module = names["network"]
        return lambda images: cast(Tensor, network(self.normalized(images)))
