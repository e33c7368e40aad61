"""What DINO and the methods of tokens after it share: crops, the teacher's temperature, and what is looked at first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from selfsup.distributed import world
from selfsup.errors import UserError
from selfsup.functional import block_mask, mixed_ratios, stratified_ratios
from selfsup.functional.collectives import rank_of, size_of
from selfsup.functional.masks import Draw
from selfsup.methods.parts import Parts
from selfsup.nn import check_tokens, token_grid
from selfsup.types import size_words

GLOBAL_VIEWS = 2


class Sharpened(Protocol):
    """Settings of a teacher's temperature."""

    teacher_temperature: float
    warmup_teacher_temperature: float
    teacher_warmup_epochs: int


def risen(config: Sharpened, epoch: int) -> float:
    """Return the teacher's temperature in an epoch; the last of the warm-up has the whole."""
    epochs = config.teacher_warmup_epochs
    if epoch >= epochs:
        return config.teacher_temperature
    rise = config.teacher_temperature - config.warmup_teacher_temperature
    return config.warmup_teacher_temperature + rise * epoch / max(1, epochs - 1)


def check_global_views(parts: Parts, method: str) -> None:
    """Look at the first two views.

    Raises:
        UserError: They are not of one size.
    """
    if len(set(parts.views.sizes[:GLOBAL_VIEWS])) > 1:
        raise UserError(f"{method}'s first two views are global ones of one size; let augment.counts begin with 2.")


def check_class_token(parts: Parts) -> None:
    """Look whether the feature of the network is its class token.

    Raises:
        UserError: It is another, or the network is no transformer whose tokens are known.
    """
    network: Any = check_tokens(parts.backbone.network)
    if getattr(network, "cls_token", None) is None or getattr(network, "global_pool", None) != "token":
        raise UserError(
            "backbone: this method learns a class token, and the feature of this network is not its class token; take "
            "backbone=vit_small, or leave global_pool and class_token out of backbone.kwargs."
        )


def check_class_tokens(parts: Parts, ratios: Sequence[float]) -> None:
    """Look at the views, the network and the ratios of a method that learns class and patch tokens.

    Raises:
        UserError: Global crops of different sizes, a network whose feature is not its class token, ratios that are no
            range, or that mask no patch.
    """
    check_global_views(parts, "This method")
    check_class_token(parts)
    rows, columns = token_grid(parts.backbone.network, parts.views.sizes[0])
    if len(ratios) != 2 or ratios[0] > ratios[1]:
        raise UserError(f"method.mask_ratios={list(ratios)} must be two numbers, the lower first.")
    if round(ratios[1] * rows * columns) < 1:
        raise UserError(
            f"method.mask_ratios={list(ratios)} masks none of the {rows * columns} patches of views of "
            f"{size_words(parts.views.sizes[0])} pixels; raise it or take smaller patches (backbone.kwargs.patch_size)."
        )


def own_masks(draws: Sequence[Draw], grid: tuple[int, int], ratios: Sequence[float], share: float) -> Tensor:
    """Return iBOT's masks of global crops, bool ``[2N,L]``: whether and how much is masked is each crop's own chance.

    Args:
        draws: Random numbers of the images in each global view.
        grid: Rows and columns of the patches.
        ratios: Range of the share of the patches that is masked, where some are.
        share: Probability of a mask.
    """
    found = [mixed_ratios(draw, ratios[0], ratios[1], share) for draw in draws]
    return _blocks(draws, grid, found, least=max(1, (min(grid) // 3) ** 2))


def spread_masks(
    draws: Sequence[Draw], whole: Draw, grid: tuple[int, int], ratios: Sequence[float], share: float
) -> Tensor:
    """Return DINOv2's masks of this rank's global crops, bool ``[2N,L]``: ratios are spread over those of all ranks.

    Args:
        draws, grid, ratios: As :func:`own_masks`.
        whole: Random numbers that all ranks share.
        share: Share of the crops that is masked.
    """
    group, local = world(), len(draws[0](1))
    everyone = stratified_ratios(whole, len(draws) * local * size_of(group), ratios[0], ratios[1], share)
    mine = everyone.view(len(draws), size_of(group), local)[:, rank_of(group)]
    return _blocks(draws, grid, list(mine), least=4)


def _blocks(draws: Sequence[Draw], grid: tuple[int, int], ratios: Sequence[Tensor], least: int) -> Tensor:
    length = grid[0] * grid[1]
    counts = [(ratio * length).round().long() for ratio in ratios]
    return torch.cat([block_mask(draw, grid, n, least) for draw, n in zip(draws, counts, strict=True)])
