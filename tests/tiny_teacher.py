"""The teacher of tiny runs: wider than their network, of another grid, and the same in every process."""

from __future__ import annotations

import torch
from torch import nn


class TinyTeacher(nn.Module):
    """Two convolutions with BatchNorm that has seen something; 6 channels on a grid of a quarter of the side."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 5, 3, 2, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(5, 6, 3, 2, 1)
        )

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(images)
        return found

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_features(images).mean(dim=(2, 3))


def teacher() -> TinyTeacher:
    """Return it, for ``module:tiny_teacher.teacher``."""
    with torch.random.fork_rng([]):
        torch.manual_seed(11)
        built = TinyTeacher()
        norm = built.layers[1]
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        norm.running_mean.normal_()
    return built
