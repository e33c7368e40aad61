"""Predicting one view from the other, with no negatives: the losses of BYOL and SimSiam."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import floats


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    r"""Negative cosine similarity of each prediction with its target, averaged over the images.

    .. math:: D(p, z) = -\frac{1}{N} \sum_i \frac{p_i}{\lVert p_i \rVert} \cdot \frac{z_i}{\lVert z_i \rVert}

    SimSiam minimises :math:`\frac12 D(p_1, z_2) + \frac12 D(p_2, z_1)`. BYOL minimises the squared distance of the
    normalised vectors, :math:`\lVert \hat p - \hat z \rVert^2 = 2 - 2 \cos(p, z)`, in both directions: the sum of two
    terms :math:`2 + 2 D`.

    Args:
        prediction, target: ``[N,D]``; L2-normalised here. Gradients reach both: pass a target that carries none where
            the method stops them. Float16 and bfloat16 become float32.

    Returns:
        Scalar in [-1, 1]. It is a mean over a rank's own images, so that DDP's mean over ranks is the whole batch's.

    Raises:
        ValueError: The shapes differ or are not ``[N,D]``.

    Source:
        Chen and He, "Exploring Simple Siamese Representation Learning", 2020, equation 1; Grill et al., "Bootstrap
        Your Own Latent", 2020, equation 2.
    """
    prediction, target = floats("negative_cosine", "[N,D]", prediction=prediction, target=target)
    with torch.autocast(prediction.device.type, enabled=False):
        prediction, target = F.normalize(prediction, dim=1), F.normalize(target, dim=1)
        return -(prediction * target).sum(dim=1).mean()
