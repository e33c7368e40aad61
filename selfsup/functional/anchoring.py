"""Holding features to those of another network, by how similar they find the images of a batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import floats
from selfsup.functional.collectives import gather


def gram_distance(features: Tensor, original: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    r"""Mean squared difference of the cosine similarities of all pairs of images under two networks.

    .. math:: L = \frac{1}{N^2} \lVert \hat F \hat F^\top - \hat G \hat G^\top \rVert_F^2

    with :math:`\hat F, \hat G` the L2-normalised rows of ``features`` and ``original``. It asks that the images keep
    their neighbours, and leaves free what turns all features together: an orthogonal map of either changes nothing. The
    two may differ in width.

    Args:
        features: ``[N,D]``; L2-normalised here, as ``original`` is. Float16 and bfloat16 become float32.
        original: ``[N,E]`` of the same images; pass it without a gradient.
        group: Ranks whose images are compared, too: each averages over its own images against those of all ranks, so
            that DDP's mean over ranks is the whole batch's. None is this process alone.

    Returns:
        Scalar in [0, 4].

    Raises:
        ValueError: The shapes do not fit, or there is no image.

    Source:
        Siméoni et al., "DINOv3", 2025, section 4.2, where the rows are the patches of one image; here they are the
        images of a batch.
    """
    features, original = floats("gram_distance", "[N,D] [N,E]", features=features, original=original)
    with torch.autocast(features.device.type, enabled=False):
        features, original = F.normalize(features, dim=1), F.normalize(original, dim=1)
        everyone = gather(features, group)
        everyone_before = gather(original, group)
        return (features @ everyone.T - original @ everyone_before.T).square().mean()
