"""What tests of losses share: gradients of a loop over floats by central differences, and small linear algebra."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def slopes(loss: Callable[..., float], *tensors: Tensor, step: float = 1e-5) -> list[Tensor]:
    """Return the gradient of ``loss(*tensors)`` in each float64 tensor, entry by entry."""
    found = []
    for number, tensor in enumerate(tensors):
        gradient = torch.zeros_like(tensor)
        for place in range(tensor.numel()):
            moved = []
            for sign in (1, -1):
                shifted = tensor.clone()
                shifted.view(-1)[place] += sign * step
                moved.append(loss(*tensors[:number], shifted, *tensors[number + 1 :]))
            gradient.view(-1)[place] = (moved[0] - moved[1]) / (2 * step)
        found.append(gradient)
    return found


def unit(row: list[float]) -> list[float]:
    """Return a list of floats at length 1."""
    length = math.sqrt(math.fsum(x * x for x in row))
    return [x / length for x in row]


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def mean_row(rows: list[list[float]]) -> list[float]:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def eigenvalues(matrix: list[list[float]]) -> list[float]:
    """Return the eigenvalues of a symmetric matrix by Jacobi's rotations."""
    a = [list(row) for row in matrix]
    size = len(a)
    for _ in range(60):
        for p in range(size):
            for q in range(p + 1, size):
                if abs(a[p][q]) < 1e-300:
                    continue
                angle = math.atan2(2 * a[p][q], a[q][q] - a[p][p]) / 2
                c, s = math.cos(angle), math.sin(angle)
                for k in range(size):
                    a[k][p], a[k][q] = c * a[k][p] - s * a[k][q], s * a[k][p] + c * a[k][q]
                for k in range(size):
                    a[p][k], a[q][k] = c * a[p][k] - s * a[q][k], s * a[p][k] + c * a[q][k]
    return [a[k][k] for k in range(size)]
