"""Gradients by the pixels, averaged over noise."""

import torch
from torch import Tensor

from selfsup.eval.ways import Scene, way
from selfsup.functional.saliency import smooth_grad

PASSES = 25


@way("smooth_grad")
def smoothed(scene: Scene) -> Tensor:
    """Root of the mean squared gradient by the pixels over noisy copies, over all channels (arXiv:1706.03825)."""
    generator = torch.Generator(scene.images.device).manual_seed(scene.seed)
    squares = smooth_grad(scene.score, scene.images, scene.passes(PASSES), generator=generator)
    return squares.sum(1).sqrt()
