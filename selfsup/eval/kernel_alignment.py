"""How alike networks represent the same images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.eval.encoder import Encoder
from selfsup.eval.subject import evenly
from selfsup.functional.diagnostics import linear_cka

IMAGES = 5000  # a table of every layer is kept in memory


@dataclass(frozen=True)
class CkaTable:
    """Linear CKA of every pair of representations.

    Attributes:
        names: Of the representations, a run or ``run: layer``.
        values: float ``[R,R]``, symmetric with ones on the diagonal.
        images: Number of images it is computed on.
    """

    names: tuple[str, ...]
    values: Tensor
    images: int

    def __str__(self) -> str:
        wide = max(map(len, self.names))
        lines = [f"{'':{wide}s}  " + "  ".join(f"{number + 1:5d}" for number in range(len(self.names)))]
        for number, (name, row) in enumerate(zip(self.names, self.values.tolist(), strict=True)):
            lines.append(f"{name:{wide}s}  " + "  ".join(f"{value:5.2f}" for value in row) + f"   {number + 1}")
        return "\n".join(lines)


def cka(
    encoders: Mapping[str, Encoder],
    dataset: ImageDataset,
    *,
    layers: bool = False,
    images: int = IMAGES,
) -> CkaTable:
    """Compare networks by what they make of the same images: linear CKA without bias, see ``linear_cka``.

    Args:
        encoders: Networks by name.
        dataset: Images; labels are not read.
        layers: Compare every stage of every network, not the pooled features alone.
        images: Most images, spaced evenly over the dataset.

    Raises:
        UserError: Fewer than two networks or four images, or features that do not vary.
    """
    if len(encoders) < 2:
        raise UserError("cka: name at least two runs.")
    part = evenly(dataset, images)
    if len(part) < 4:
        raise UserError(f"data: CKA needs at least 4 images and there are {len(part)}.")
    found: dict[str, Tensor] = {}
    for name, encoder in encoders.items():
        features = encoder.layers(part)
        if layers:
            found |= {f"{name}: {layer}": rows.features for layer, rows in features.items()}
        else:
            found[name] = features["backbone"].features
    names = tuple(found)
    values = torch.eye(len(names))
    for i, first in enumerate(names):
        for j, second in enumerate(names[:i]):
            try:
                values[i, j] = values[j, i] = linear_cka(found[first], found[second], unbiased=True)
            except ValueError as error:
                raise UserError(f"cka: {first} and {second}: {error}; a network may have collapsed.") from error
    return CkaTable(names, values, len(part))
