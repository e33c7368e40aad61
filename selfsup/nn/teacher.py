"""A frozen network that another one learns from."""

from __future__ import annotations

import torch
from torch import Tensor

from selfsup.errors import UserError
from selfsup.nn.backbone import Backbone
from selfsup.types import Normalization


class Teacher:
    """A network that stays as it is: in evaluation mode, without gradients, and with its own normalisation.

    It is no module on purpose, so that the method that holds it neither trains nor saves it, nor splits it over ranks.
    It follows the images it is given to their device and precision.

    Args:
        backbone: The network; it is frozen.
        seen: Statistics that the images it will be given are normalised with; they are exchanged for the network's
            own, where it has such.
        channels: Of these images. Grey ones are repeated for a network of colours.

    Raises:
        UserError: The network takes images of other channels.
    """

    def __init__(self, backbone: Backbone, seen: Normalization, channels: int) -> None:
        wanted = backbone.in_channels
        if channels not in (1, wanted):
            raise UserError(
                f"method.teacher takes images of {wanted} channel{'s' * (wanted > 1)} and the data has {channels}; "
                "choose another teacher, or set data.channels."
            )
        self.backbone = backbone.requires_grad_(False).eval()
        self._like: tuple[torch.device, torch.dtype] | None = None
        own = backbone.normalization
        self.scale, self.shift = torch.ones(1, wanted, 1, 1), torch.zeros(1, wanted, 1, 1)
        if own is not None and own != seen:
            mean, std, own_mean, own_std = (
                _by_channel(values, count)
                for values, count in (
                    (seen.mean, channels),
                    (seen.std, channels),
                    (own.mean, wanted),
                    (own.std, wanted),
                )
            )
            self.scale, self.shift = std / own_std, (mean - own_mean) / own_std

    @torch.no_grad()
    def __call__(self, images: Tensor, maps: bool = True) -> tuple[Tensor, Tensor | None]:
        """Return its features ``[B,D]`` of normalised images, and its maps ``[B,D',rows,columns]`` if asked for.

        Raises:
            UserError: The network has no maps.
        """
        if self._like != (images.device, images.dtype):
            self._like = images.device, images.dtype
            self.backbone.to(*self._like)
            self.scale, self.shift = self.scale.to(images), self.shift.to(images)
        seen = images.expand(-1, self.backbone.in_channels, -1, -1) * self.scale + self.shift
        return self.backbone.forward_both(seen) if maps else (self.backbone(seen), None)


def _by_channel(values: tuple[float, ...], channels: int) -> Tensor:
    """Return statistics for so many channels; three values meet one channel as their mean."""
    found = torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
    return found.mean(dim=1, keepdim=True) if channels == 1 else found
