"""Ridge regression in closed form, for every strength of the penalty by one decomposition."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LARGEST = 8192  # side of the matrix that is decomposed: half a gigabyte, and minutes on few cores
BLOCK = 2**24  # numbers that are held in float64 at a time


def solve_ridge(
    inputs: Tensor, outputs: Callable[[Tensor], Tensor], mean_output: Tensor, penalties: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Minimise ``mean_n ‖y_n - W x_n - b‖² + λ ‖W‖²`` for every penalty ``λ`` by one eigen-decomposition.

    With centred ``X = inputs - mean`` and ``Y`` likewise, ``W = V (S + λN)⁻¹ Vᵀ Xᵀ Y`` where ``XᵀX = V S Vᵀ``; where
    there are fewer images than dimensions ``XXᵀ`` is decomposed in its place. Computed in float64.

    Args:
        inputs: float ``[N,D]``.
        outputs: Returns the rows of ``Y``, float64 ``[n,C]``, at positions int64 ``[n]``.
        mean_output: float64 ``[C]``, the mean of all of them.
        penalties: ``G`` values above 0.

    Returns:
        Weights ``[G,D,C]`` and biases ``[G,C]``, in the type of the inputs.
    """
    count, width = inputs.shape
    blocks = torch.split(torch.arange(count, device=inputs.device), max(1, BLOCK // width))
    mean = sum((inputs[block].double().sum(0) for block in blocks), inputs.new_zeros(width, dtype=torch.double)) / count
    penalised = torch.tensor([penalty * count for penalty in penalties], dtype=torch.double, device=inputs.device)

    def centred(block: Tensor) -> tuple[Tensor, Tensor]:
        return inputs[block].double() - mean, outputs(block) - mean_output

    # V and what the weights are in its coordinates, before the division by the penalised eigenvalues
    if count >= width:
        scatter = inputs.new_zeros(width, width, dtype=torch.double)
        product = inputs.new_zeros(width, len(mean_output), dtype=torch.double)
        for block in blocks:
            x, y = centred(block)
            scatter += x.T @ x
            product += x.T @ y
        values, vectors = torch.linalg.eigh(scatter)
        along, basis = vectors.T @ product, vectors
    else:
        x, y = centred(torch.arange(count, device=inputs.device))
        values, vectors = torch.linalg.eigh(x @ x.T)
        along, basis = vectors.T @ y, x.T @ vectors
    weights = torch.stack([basis @ (along / (values.clamp_min(0) + p)[:, None]) for p in penalised])
    biases = mean_output - mean @ weights
    return weights.to(inputs.dtype), biases.to(inputs.dtype)
