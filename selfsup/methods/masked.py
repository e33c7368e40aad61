"""What methods that mask tokens look at before they are built: the grid of their views, and what a mask leaves."""

from __future__ import annotations

import warnings
from typing import Any

from selfsup.errors import UserError
from selfsup.functional.masks import masked_count
from selfsup.methods.parts import Parts
from selfsup.nn import token_grid
from selfsup.types import size_words


def check_masked(parts: Parts, ratio: float, cell: int = 1, windowed: bool = False) -> tuple[tuple[int, int], int]:
    """Return rows and columns of the tokens of the views, and the side of a patch in pixels.

    Args:
        parts: Of the method.
        ratio: ``method.mask_ratio``, the share of the tokens that is masked.
        cell: ``method.mask_cell``, the side in tokens of the squares that are masked together.
        windowed: Whether the network may be a Swin transformer.

    Raises:
        UserError: A network without tokens, patches that are no squares, or a ratio that masks none or all of them.
    """
    network: Any = parts.backbone.network
    size = parts.views.sizes[0]
    rows, columns = token_grid(network, size, windowed)
    height, width = network.patch_embed.patch_size
    if height != width:
        raise UserError(f"backbone: patches of {height}×{width} pixels are no squares; take another patch_size.")
    if rows % cell or columns % cell:
        raise UserError(
            f"method.mask_cell={cell} does not divide the grid of {rows}×{columns} patches of views of "
            f"{size_words(size)} pixels; set it to a common divisor."
        )
    length = rows * columns // cell**2
    masked, kind = masked_count(length, ratio), "patches" if cell == 1 else "squares"
    if not 0 < masked < length:
        raise UserError(
            f"method.mask_ratio={ratio} masks {masked} of the {length} {kind} of views of {size_words(size)} pixels; "
            "some must be masked and some seen. Change it, or take smaller patches (backbone.kwargs.patch_size)."
        )
    return (rows, columns), int(height)


def check_pooling(parts: Parts, method: str) -> None:
    """Warn where the network's feature is a class token, which nothing teaches here."""
    network: Any = parts.backbone.network
    if getattr(network, "global_pool", None) == "token":
        warnings.warn(
            f"backbone: the feature of this network is its class token, which {method} does not teach; "
            "backbone=vit_small_mean, or backbone.kwargs={global_pool: avg, fc_norm: false}, takes the mean of the "
            "patch tokens.",
            stacklevel=3,
        )
