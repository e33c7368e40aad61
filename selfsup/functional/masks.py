"""Which tokens of an image a network does not see: samplers of masks, and what turns a mask into indices.

A mask is bool ``[N,L]``, True = masked, over the L = H·W tokens of a grid in raster order. Ratios become counts by
``masked_count``: round(rL) tokens are masked and L − round(rL) stay, in every image exactly.

Samplers keep no state and take no seed. They ask for uniform numbers: ``draw(which)`` returns float64
``[N,len(which)]`` in [0, 1), of each image those numbers of its endless row; ``n`` stands for ``range(n)``. With
``functools.partial(selfsup.random.uniform, seed, index)`` a mask is a function of (seed, image's index) as views are;
``Method.draw`` and ``Method.draw_whole`` give such draws for one view and for the batch of all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from selfsup.functional.arguments import count as check_count
from selfsup.functional.arguments import integers, is_count, kind, within
from selfsup.functional.arguments import number as check_number

Draw = Callable[[int | Sequence[int]], Tensor]
Grid = tuple[int, int]

_TRIES = 10  # blocks in a row that do not fit, after which the rest is masked at random
_ROUNDS = 20  # sets of positions that are tried for a context that is large enough
_SIZES = 3  # numbers of the row from which the sizes of a batch's blocks come
_RATIO = 2  # numbers of the row that ratios take, so that block masks of the same row begin behind them


def masked_count(length: int, ratio: float) -> int:
    """Return how many of ``length`` tokens a ratio masks: round(ratio · length), a half to the even number."""
    check_count("masked_count", length=length)
    check_number("masked_count", least=0, below=math.nextafter(1, 2), ratio=ratio)
    return round(ratio * length)


def random_mask(draw: Draw, grid: Grid, ratio: float) -> Tensor:
    """Mask tokens one by one, each set of them as likely as every other (MAE).

    Args:
        draw: Uniform numbers of each image, see the module.
        grid: Rows and columns.
        ratio: Share of the tokens that is masked.

    Returns:
        bool ``[N,L]``.

    Raises:
        ValueError: A ratio outside of [0, 1].

    Source:
        He et al., "Masked Autoencoders Are Scalable Vision Learners", 2021.
    """
    length = grid[0] * grid[1]
    return _lowest(draw(length), masked_count(length, ratio))


def grid_mask(draw: Draw, grid: Grid, ratio: float, cell: int = 2) -> Tensor:
    """Mask squares of ``cell`` × ``cell`` tokens that tile the grid (SimMIM).

    The ratio is rounded over squares. (SimMIM's code rounds up: 30 of 49 squares at 0.6, where this masks 29.)

    Args:
        draw, grid: As :func:`random_mask`.
        ratio: Share of the squares that is masked.
        cell: Side of a square in tokens, a divisor of both sides of the grid.

    Returns:
        bool ``[N,L]``.

    Raises:
        ValueError: A cell that does not divide the grid, or a ratio outside of [0, 1].

    Source:
        Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", 2021.
    """
    check_count("grid_mask", cell=cell)
    if grid[0] % cell or grid[1] % cell:
        raise ValueError(f"grid_mask: cell={cell} does not divide the grid of {grid[0]}×{grid[1]} tokens.")
    rows, columns = grid[0] // cell, grid[1] // cell
    squares = random_mask(draw, (rows, columns), ratio).view(-1, rows, columns)
    return squares.repeat_interleave(cell, 1).repeat_interleave(cell, 2).flatten(1)


def block_mask(draw: Draw, grid: Grid, count: int | Tensor, least: int = 4, aspect: float = 0.3) -> Tensor:
    """Mask rectangles until ``count`` tokens are masked (BEiT, iBOT, DINOv2).

    A block has an area from ``least`` to the number still wanted, uniform, and a height over width from ``aspect`` to
    1 / ``aspect``, log-uniform. It is refused where it spans a side of the grid, adds nothing, or adds more than is
    wanted. After ten refusals in a row the rest is masked at random, as in DINOv3, so that the count is exact.

    Args:
        draw, grid: As :func:`random_mask`.
        count: Tokens to mask, of all images or int64 ``[N]``.
        least: Smallest area drawn: 16 in BEiT, (min(H, W) // 3)² in iBOT, 4 in DINOv2.
        aspect: Smallest height over width, in (0, 1].

    Returns:
        bool ``[N,L]``.

    Raises:
        ValueError: A count below 0 or above L, or a setting out of range.

    Source:
        Bao et al., "BEiT", 2021; Oquab et al., "DINOv2", 2023; facebookresearch/dinov3 6876159.
    """
    height, width = grid
    length = height * width
    if not is_count(least):  # its name is that of a bound of the helper
        raise ValueError(f"block_mask: least must be a whole number from 1 on, got {least!r}.")
    check_number("block_mask", above=0, below=math.nextafter(1, 2), aspect=aspect)
    if isinstance(count, Tensor):
        integers("block_mask", "[N]", count=count)
    elif isinstance(count, bool) or not isinstance(count, int):
        raise ValueError(f"block_mask: count must be a whole number or a tensor of them, got {count!r}.")
    last = draw(range(_RATIO, _RATIO + length))
    left = torch.as_tensor(count).to(last.device).expand(len(last)).clone()
    if bool(((left < 0) | (left > length)).any()):
        raise ValueError(f"block_mask: count must be from 0 to the {length} tokens of the grid, got {count}.")
    mask = torch.zeros(len(last), height, width, dtype=torch.bool, device=last.device)
    refusals, slot = torch.zeros_like(left), _RATIO + length
    while bool(((left > 0) & (refusals < _TRIES)).any()):
        area, shape, down, right = draw(range(slot, slot + 4)).unbind(1)
        slot += 4
        area = least + (left - least) * area
        ratio = torch.exp((2 * shape - 1) * -math.log(aspect))
        rows, columns = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        # a block that is too large has a negative start and is refused below
        block = _span((down * (height - rows + 1)).long(), rows, height)[:, :, None]
        block = block & _span((right * (width - columns + 1)).long(), columns, width)[:, None, :]
        added = (block & ~mask).sum((1, 2))
        fits = (rows < height) & (columns < width) & (added > 0) & (added <= left) & (refusals < _TRIES)
        mask |= block & fits[:, None, None]
        left -= added * fits
        refusals = torch.where(fits, 0, refusals + 1)
    flat = mask.flatten(1)
    return flat | _lowest(last.masked_fill(flat, 2.0), left)


def inverse_block_mask(draw: Draw, grid: Grid, ratio: float, aspect: float = 0.5) -> Tensor:
    """Leave one rectangle, rolled over the edges of the grid, and mask all the rest (CAPI).

    The rectangle's height over width is log-uniform in [``aspect``, 1 / ``aspect``] as far as the grid has room; the
    end of its last row is cut so that exactly L − round(rL) tokens stay. Both shifts are uniform, so every token is
    masked equally often.

    Args:
        draw, grid: As :func:`random_mask`.
        ratio: Share of the tokens that is masked.
        aspect: Smallest height over width, in (0, 1].

    Returns:
        bool ``[N,L]``.

    Raises:
        ValueError: A ratio outside of [0, 1], or an aspect out of range.

    Source:
        Darcet et al., "Cluster and Predict Latent Patches for Improved Masked Image Modeling", 2025;
        facebookresearch/capi 98b4fa1.
    """
    height, width = grid
    length = height * width
    check_number("inverse_block_mask", above=0, below=math.nextafter(1, 2), aspect=aspect)
    shape, down, right = draw(3).unbind(1)
    seen = length - masked_count(length, ratio)
    if seen == 0:
        return torch.ones(len(shape), length, dtype=torch.bool, device=shape.device)
    low = max(math.log(aspect), math.log(seen / width**2))
    high = min(-math.log(aspect), math.log(height**2 / seen))
    side = (seen * torch.exp(low + (high - low) * shape)).sqrt()
    rows = side.ceil().long().clamp(1, height)
    columns = (seen / side).ceil().long().clamp(1, width)
    columns = torch.maximum(columns, (seen + rows - 1) // rows).clamp(max=width)  # a narrow grid has no such shape
    rows = torch.maximum(rows, (seen + columns - 1) // columns)
    row, column = torch.arange(height, device=shape.device), torch.arange(width, device=shape.device)
    row = (row - (down * height).long()[:, None]) % height  # of each token, in the rectangle that starts at 0, 0
    column = (column - (right * width).long()[:, None]) % width
    inside = (row < rows[:, None])[:, :, None] & (column < columns[:, None])[:, None, :]
    order = row[:, :, None] * columns[:, None, None] + column[:, None, :]
    return ~(inside & (order < seen)).flatten(1)


class MultiBlock(NamedTuple):
    """A context and the blocks to predict from it.

    Attributes:
        hidden: bool ``[N,L]``: what the context leaves out, the same number of tokens in every image.
        targets: bool ``[N,T,L]``: the blocks, all of one size. They may overlap; none meets the context.
    """

    hidden: Tensor
    targets: Tensor


def multi_block_masks(
    draw: Draw,
    grid: Grid,
    targets: int = 4,
    target_scale: tuple[float, float] = (0.15, 0.2),
    target_aspect: tuple[float, float] = (0.75, 1.5),
    context_scale: tuple[float, float] = (0.85, 1.0),
    min_context: int = 10,
) -> MultiBlock:
    """Draw several target blocks, and a large square block without them as the context (I-JEPA).

    Sizes are drawn once for the batch, from the first image's row: the area as a share of the grid and the height over
    width, both uniform and independent. (The authors' code takes both from one number.) Positions are drawn for each
    image, uniform over all places where the block fits, the last row and column included, which the authors' code
    never reaches. Where the context would have fewer than ``min_context`` tokens, all positions of that image are
    drawn again, up to 20 times; the largest context counts then, and if every one is empty all targets lie where the
    first is. So the sampler ends on every grid that is larger than a target.

    The contexts are cut to the smallest of the batch by leaving out tokens at random. (The authors leave out the last
    ones, so that contexts lose their lower end.) Because sizes and this number are common to the batch, ``draw`` must
    have a row for every image of all ranks, of which each then takes its own.

    Args:
        draw, grid: As :func:`random_mask`.
        targets: Number T of blocks.
        target_scale, target_aspect: Ranges of a target's share of the grid and of its height over width.
        context_scale: Range of the context's share of the grid before the targets are taken out.
        min_context: Tokens that a context should have.

    Returns:
        The masks of the context and of the targets.

    Raises:
        ValueError: A range out of order, or a target that leaves no context on this grid.

    Source:
        Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture", 2023;
        facebookresearch/ijepa 52c1ae9.
    """
    height, width = grid
    check_count("multi_block_masks", targets=targets, min_context=min_context)
    for name, (low, high) in {"target_scale": target_scale, "context_scale": context_scale}.items():
        if not 0 < low <= high <= 1:
            raise ValueError(f"multi_block_masks: {name} must be 0 < low <= high <= 1, got {low} and {high}.")
    if not 0 < target_aspect[0] <= target_aspect[1]:
        raise ValueError(f"multi_block_masks: target_aspect must be 0 < low <= high, got {target_aspect}.")
    area, aspect, context_area = draw(_SIZES)[0].tolist()
    target = _block_size(grid, _at(area, target_scale), _at(aspect, target_aspect))
    context = _block_size(grid, _at(context_area, context_scale), 1.0)
    if target[0] * target[1] >= context[0] * context[1]:
        raise ValueError(
            f"multi_block_masks: targets of {target[0]}×{target[1]} tokens leave no context on a grid of "
            f"{height}×{width}; use smaller patches or a smaller target_scale."
        )
    sizes = torch.tensor([context] + [target] * targets)
    best, seen = _places(draw, 0, grid, sizes)
    for attempt in range(1, _ROUNDS):
        short = seen.sum(1) < min_context
        if not bool(short.any()):
            break
        again, left = _places(draw, attempt, grid, sizes)
        better = short & (left.sum(1) > seen.sum(1))
        best = torch.where(better[:, None, None], again, best)
        seen = torch.where(better[:, None], left, seen)
    empty = ~seen.any(1)
    best[empty, 2:] = best[empty, 1:2]
    seen = best[:, 0] & ~best[:, 1:].any(1)
    first = _SIZES + _ROUNDS * 2 * len(sizes)
    order = draw(range(first, first + height * width)).masked_fill(~seen, 2.0)
    return MultiBlock(~_lowest(order, seen.sum(1).min()), best[:, 1:])


def stratified_ratios(draw: Draw, count: int, low: float = 0.1, high: float = 0.5, share: float = 0.5) -> Tensor:
    """Return a mask ratio for each of ``count`` crops: 0 for some, evenly spread ratios for exactly the others.

    round(share · count) crops are masked. The range is cut into as many equal intervals, each gives one ratio, uniform
    in it, and all are shuffled.

    Args:
        draw: As :func:`random_mask`; its first row counts. All crops of all ranks belong together.
        count: Number of crops.
        low, high: Range of the ratios.
        share: Share of the crops that is masked.

    Returns:
        float64 ``[count]``.

    Raises:
        ValueError: A setting out of range.

    Source:
        Oquab et al., "DINOv2", 2023; facebookresearch/dinov2 b8931f7.
    """
    check_count("stratified_ratios", count=count)
    check_number("stratified_ratios", least=0, below=math.nextafter(1, 2), low=low, high=high, share=share)
    masked = round(share * count)
    inside, order = draw(2 * count)[0].chunk(2)
    position = torch.arange(count, dtype=inside.dtype, device=inside.device)
    ratios = low + (high - low) * (position + inside) / max(1, masked)
    return torch.where(position < masked, ratios, 0.0)[order.argsort()]


def mixed_ratios(draw: Draw, low: float = 0.1, high: float = 0.5, share: float = 0.5) -> Tensor:
    """Return a mask ratio for each image: 0, or with probability ``share`` one that is uniform (iBOT).

    Args:
        draw: As :func:`random_mask`; the numbers are others than those of :func:`block_mask`.
        low, high: Range of the ratios.
        share: Probability of a mask.

    Returns:
        float64 ``[N]``.

    Raises:
        ValueError: A setting out of range.

    Source:
        Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", 2021; bytedance/ibot da316d8.
    """
    check_number("mixed_ratios", least=0, below=math.nextafter(1, 2), low=low, high=high, share=share)
    chosen, ratio = draw(_RATIO).unbind(1)
    return torch.where(chosen < share, low + (high - low) * ratio, 0.0)


def kept_index(mask: Tensor) -> Tensor:
    """Return the places of the tokens that a mask leaves, in raster order: bool ``[N,L]`` to int64 ``[N,K]``.

    ``kept_index(~mask)`` gives those it takes. Look at masks before they go to another device: K is a number that the
    host needs.

    Raises:
        ValueError: No mask, or images with different counts.
    """
    plain = isinstance(mask, Tensor) and mask.layout == torch.strided and not mask.is_meta
    if not plain or mask.dtype != torch.bool or mask.ndim != 2 or not mask.numel():
        raise ValueError(f"kept_index: mask must be a tensor of bool [N,L] with values, got {kind(mask)}.")
    counts = (~mask).sum(1)
    if not bool((counts == counts[0]).all()):
        raise ValueError(
            f"kept_index: images keep {int(counts.min())} to {int(counts.max())} tokens, and an index has one number."
        )
    return (~mask).nonzero()[:, 1].view(len(mask), -1)


def masked_places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return of every masked token its image and its place: bool ``[N,L]`` to int64 ``[M]`` twice, image by image.

    Look at masks before they go to another device, as in :func:`kept_index`.
    """
    image, place = mask.nonzero().unbind(1)
    return image, place


def mask_of(kept: Tensor, length: int) -> Tensor:
    """Return the mask that leaves the tokens of an index: int64 ``[N,K]`` to bool ``[N,L]`` of ``length`` tokens.

    Raises:
        ValueError: No index of these tokens.
    """
    check_count("mask_of", length=length)
    integers("mask_of", "[N,K?]", kept=kept)
    within("mask_of", 0, length, kept=kept)
    mask = torch.ones(len(kept), length, dtype=torch.bool, device=kept.device)
    return mask.scatter_(1, kept, False)


def _lowest(numbers: Tensor, count: int | Tensor) -> Tensor:
    """Choose the ``count`` lowest numbers of each row, all or ``[N]``: bool of the shape of ``numbers``."""
    rank = numbers.argsort(dim=1, stable=True).argsort(dim=1)
    return torch.lt(rank, torch.as_tensor(count, device=rank.device).view(-1, 1))


def _span(start: Tensor, length: Tensor, whole: int) -> Tensor:
    """Choose ``start … start + length`` of ``whole`` places along one axis: bool ``[…,whole]``."""
    place = torch.arange(whole, device=start.device)
    return (place >= start[..., None]) & (place < (start + length)[..., None])


def _at(u: float, bounds: tuple[float, float]) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * u


def _block_size(grid: Grid, scale: float, aspect: float) -> tuple[int, int]:
    """Return rows and columns of a block whose area is near ``scale`` · L, inside the grid."""
    area = scale * grid[0] * grid[1]
    rows = min(max(1, round(math.sqrt(area * aspect))), grid[0])
    columns = min(max(1, round(area / rows)), grid[1])
    return min(max(rows, round(area / grid[1])), grid[0]), columns  # what one side cannot hold goes to the other


def _places(draw: Draw, attempt: int, grid: Grid, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Place blocks, the context first: bool ``[N,T + 1,L]``, and ``[N,L]``, what the targets leave of the context."""
    count = 2 * len(sizes)
    first = _SIZES + attempt * count
    u = draw(range(first, first + count)).reshape(-1, len(sizes), 2)
    size = sizes.to(u.device)
    start = (u * (torch.tensor(grid, device=u.device) - size + 1)).long()
    size = size.expand_as(start)
    down, right = (_span(start[..., axis], size[..., axis], grid[axis]) for axis in (0, 1))
    boxes = (down[..., :, None] & right[..., None, :]).flatten(2)
    return boxes, boxes[:, 0] & ~boxes[:, 1:].any(1)
