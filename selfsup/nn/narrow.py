"""Networks of any width, which ``width`` and ``blocks`` describe; narrow ones train on a CPU."""

from __future__ import annotations

from typing import cast

from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class ConvNet(nn.Module):
    """3×3 convolutions, each with BatchNorm and ReLU; every stage after the first halves the side.

    Args:
        width: Channels of the first stage; they double from stage to stage.
        convolutions: Number of convolutions of each stage.
        in_channels: Channels of the images.
    """

    def __init__(self, width: int, convolutions: list[int], in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        self._checkpointing = False
        for stage, count in enumerate(convolutions):
            for position in range(count):
                wider = width * 2**stage
                stride = 2 if stage and position == 0 else 1
                layers += [nn.Conv2d(channels, wider, 3, stride, 1, bias=False), nn.BatchNorm2d(wider), nn.ReLU(True)]
                channels = wider
        self.layers = nn.Sequential(*layers)
        self.num_features = channels

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last feature map ``[B,D,S,S]``."""
        if not self._checkpointing:
            return cast(Tensor, self.layers(images))
        for start in range(0, len(self.layers), 3):
            images = checkpoint(self.layers[start : start + 3], images, use_reentrant=False)
        return images

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only what convolutions take and compute the rest again, or not (timm's name for it)."""
        self._checkpointing = enable

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the spatial mean ``[B,D]`` of a map."""
        return features.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return its spatial mean ``[B,D]``."""
        return self.forward_head(self.forward_features(images))


def narrow_resnet(width: int, blocks: list[int], in_channels: int) -> ResNet:
    """Return a ResNet of basic blocks, whose first stage and stem have ``width`` channels."""
    channels = tuple(width * 2**stage for stage in range(len(blocks)))
    network = ResNet(
        BasicBlock, tuple(blocks), num_classes=0, in_chans=in_channels, channels=channels, zero_init_last=False
    )
    # timm fixes the stem at 64 channels; on a narrow network that would be most of the cost
    network.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
    network.bn1 = nn.BatchNorm2d(width)
    first = network.layer1[0]
    first.conv1 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
    first.downsample = None
    for module in (network.conv1, first.conv1):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
