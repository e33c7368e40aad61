"""No way at all: random numbers, which every other way has to beat."""

import torch
from torch import Tensor

from selfsup.eval.ways import Scene, way


@way("random")
def random(scene: Scene) -> Tensor:
    """Random numbers: what the scores say of a map that knows nothing."""
    images = scene.images
    return torch.rand(len(images), *images.shape[2:], generator=scene.generator()).to(images)
