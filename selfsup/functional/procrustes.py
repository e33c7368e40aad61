"""The rotation that brings the features of one network closest to those of another."""

from __future__ import annotations

import torch
from torch import Tensor

from selfsup.functional.arguments import floats


def orthogonal_map(x: Tensor, y: Tensor) -> Tensor:
    """Return the map with orthonormal rows or columns that brings features closest to others: ``[D1,D2]``.

    ``W = U Vᵀ`` with ``U S Vᵀ = xᵀ y``, which maximises ``Σ_i (x_i W)·y_i`` over all maps that keep lengths, and of
    equal widths minimises ``‖x W - y‖`` over all rotations and reflections (Schönemann, "A generalized solution of the
    orthogonal Procrustes problem", 1966; Ouali et al., "Black Box Few-Shot Adaptation for Vision-Language models",
    arXiv:2304.01752, which maps images to texts so). Features are taken as they come: centre and normalise them first.

    Args:
        x, y: float ``[N,D1]`` and ``[N,D2]``; row ``i`` of both comes from image ``i``.

    Raises:
        ValueError: Another number of rows.
    """
    x, y = floats("orthogonal_map", "[N,D1] [N,D2]", x=x, y=y)
    with torch.autocast(x.device.type, enabled=False):
        u, _, vh = torch.linalg.svd(x.T @ y, full_matrices=False)
        rotation: Tensor = u @ vh
    return rotation
