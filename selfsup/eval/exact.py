"""Exact nearest neighbours on a CPU: one matrix product by torch, and a selection that sorts little of it.

torch's product knows the processor that it runs on; the one in faiss's wheels takes a recent Intel for an old one and
has a fifth of the speed there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

GROUP = 32  # neighbouring products that one maximum stands for; of fewer, torch takes maxima slowly
QUERIES_AT_ONCE = 1024  # more do not make the product faster
#: Fewer queries than this are multiplied in another order for some rows, so that copies of a row would not be equal.
LEAST_QUERIES = 64
SELECTED_AT_ONCE = 128  # queries; bounds the memory of the selection


def nearest_rows(rows: Tensor, queries: Tensor, k: int, table_mb: float) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Give, for some queries at a time, the ``k`` rows of largest inner product in descending order.

    Of rows with equal products those of the lowest positions are taken, in the order of their position. Copies of a row
    have equal products.

    Args:
        rows: float32 ``[N,D]``.
        queries: float32 ``[Q,D]``.
        k: From 1 to ``N``.
        table_mb: Most memory (10⁶ bytes) of the table of products; but 64 queries are always multiplied at once.

    Yields:
        Which queries, their products ``[q,k]``, and positions int64 ``[q,k]``.
    """
    count = len(rows)
    width = math.ceil(count / GROUP) * GROUP
    at_once = min(QUERIES_AT_ONCE, int(table_mb * 1e6) // (4 * width), len(queries))
    table = rows.new_empty(max(at_once, LEAST_QUERIES), width)
    table[:, count:] = -math.inf  # so that groups are full; never among the k largest, as k is at most N
    for start in range(0, len(queries), len(table)):
        some = queries[start : start + len(table)]
        padded = torch.nn.functional.pad(some, (0, 0, 0, max(0, LEAST_QUERIES - len(some))))
        torch.mm(padded, rows.T, out=table[: len(padded), :count])
        for first in range(0, len(some), SELECTED_AT_ONCE):
            products = table[first : min(first + SELECTED_AT_ONCE, len(some))]
            where = slice(start + first, start + first + len(products))
            yield where, *_largest(products, k)


def _largest(table: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest of each row ``[Q,W]`` in descending order, and where; of equal ones the lowest.

    The ``k + 1`` largest values are within the ``k + 1`` groups of the largest maxima, and not below the least of
    these: a value outside has ``k + 1`` maxima, each of another group, that are not smaller. So only these groups are
    looked into, and only what reaches the least is sorted. Which of equal values are found does not matter to
    ``_ordered``.
    """
    count, width = table.shape
    groups = width // GROUP
    if groups <= k:
        return _ordered(table, *table.topk(min(k + 1, width), dim=1), k)
    maxima, group = table.view(count, groups, GROUP).amax(2).topk(k + 1, dim=1)
    inside = table.view(-1, GROUP).index_select(0, (group + groups * torch.arange(count)[:, None]).flatten())
    reach = inside.view(count, -1) >= maxima[:, -1:]
    amount = reach.sum(1)
    # what reaches goes to the left of a narrower table: row by row, as nonzero finds it
    chosen = reach.flatten().nonzero().flatten()
    row = torch.arange(count).repeat_interleave(amount)
    rank = torch.arange(len(row)) - (amount.cumsum(0) - amount).repeat_interleave(amount)
    value = table.new_full((count, max(k + 1, int(amount.max()))), -math.inf)
    position = group.new_zeros(value.shape)
    value[row, rank] = inside.flatten()[chosen]
    position[row, rank] = group.flatten()[chosen // GROUP] * GROUP + chosen % GROUP
    value, order = value.topk(k + 1, dim=1)
    return _ordered(table, value, position.gather(1, order), k)


def _ordered(table: Tensor, value: Tensor, position: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the first ``k`` of the largest values in order, from ``k + 1`` of them where there are so many.

    The one more shows whether equal ones are on both sides of the cut; then the lowest positions of the row are taken.
    """
    again = value[:, k] == value[:, k - 1] if value.shape[1] > k else torch.zeros(len(value), dtype=torch.bool)
    value, position = in_order(value[:, :k], position[:, :k])
    if again.any():
        value[again], position[again] = lowest_of_equal(table[again], k)
    return value, position


def in_order(value: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Put equal values of rows that are sorted by value in the order of their position."""
    rows = (value[:, 1:] == value[:, :-1]).any(1).nonzero().flatten()
    at, order = position[rows].sort(dim=1)
    near, again = value[rows].gather(1, order).sort(dim=1, descending=True, stable=True)
    return value.index_copy(0, rows, near), position.index_copy(0, rows, at.gather(1, again))


def lowest_of_equal(table: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest of each row in order, of equal ones those of the lowest position: looks at all."""
    last = table.topk(k, dim=1).values[:, -1:]
    above, equal = table > last, table == last
    taken = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    position = taken.nonzero()[:, 1].view(-1, k)
    value, order = table.gather(1, position).sort(dim=1, descending=True, stable=True)
    return value, position.gather(1, order)
