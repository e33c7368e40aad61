"""Nearest neighbours by cosine similarity: exact by default, approximate where that is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from selfsup.bars import progress_bar
from selfsup.errors import UserError
from selfsup.eval.exact import in_order, lowest_of_equal, nearest_rows
from selfsup.eval.features import unit_rows
from selfsup.functional.arguments import floats, is_count

#: What ``index`` may be: exact, lists around centroids, a graph, exact over half-precision copies.
INDEXES = ("flat", "ivf", "hnsw", "half")
MEMORY_MB = 512  # for a block of the bank; 60,000 features of 512 dimensions are one block
QUERIES_AT_ONCE = 4096  # what faiss is given at once
GPU_LARGEST_K = 2048  # what faiss can select on a GPU, and the most lists it can visit
RECALL_QUERIES = 1000  # queries that the recall of an approximate index is measured on

_Find = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def search(
    bank: Tensor,
    queries: Tensor,
    k: int,
    *,
    index: str = "flat",
    effort: float = 1.0,
    memory_mb: float = MEMORY_MB,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Find the ``k`` rows of the bank that are most similar to each query.

    Inner products of L2-normalised rows. Exact search on a CPU is torch's matrix product; everything else is faiss,
    sharded over all GPUs that faiss sees (a graph is searched on the CPU). Neighbours of equal similarity are in the
    order of their position; of those at the cut, exact search keeps the lowest positions. A bank whose index would take
    more than ``memory_mb`` is searched in blocks and the best of all blocks are kept, so that exact search gives the
    same for any budget, up to rounding of the similarity.

    ========  ======================================================================================================
    ``flat``  Exact.
    ``ivf``   ``4 sqrt(N)`` lists around k-means centroids; ``effort / 16`` of the lists are visited.
    ``hnsw``  A graph of 32 links a row; ``64 · effort`` candidates, at least ``k``. Building uses all threads, which
              leaves the graph, and so its neighbours, different between runs.
    ``half``  Every row, kept in half precision: half the memory, similarities good to about 1e-3.
    ========  ======================================================================================================

    Args:
        bank: float ``[N,D]``.
        queries: float ``[Q,D]``.
        k: Number of neighbours, at most ``N``.
        index: One of ``INDEXES``.
        effort: How much of an approximate index is visited: more finds more of the true neighbours and takes longer.
        memory_mb: Most memory (10⁶ bytes) of the index with the normalised rows it is made of, beside the bank. On a
            CPU exact search takes up to half as much again for the products at work (of 64 queries at least). The
            queries at work, at most 4,096, take up to ``4 (D + 32 k + 1024)`` bytes each besides.
        progress: Show a progress bar when it takes longer than two seconds.

    Returns:
        Cosine similarity, float32 ``[Q,k]`` in descending order, and position in the bank, int64 ``[Q,k]``.

    Raises:
        ValueError: ``k`` is not between 1 and ``N``.
        UserError: There is no such index, or ``effort`` or ``memory_mb`` is not above 0.
    """
    floats("search", "[N,D] [Q?,D]", bank=bank, queries=queries)
    if not is_count(k) or k > len(bank):
        raise ValueError(
            f"search: k must be a whole number from 1 to {len(bank)} for a bank of {len(bank)}, got {k!r}."
        )
    check_index(index, effort, memory_mb)
    similarity = torch.full((len(queries), k), -math.inf)
    position = torch.full((len(queries), k), -1)
    blocks = torch.split(bank, _block_rows(bank.shape[1], index, memory_mb))
    with progress_bar(
        total=len(queries) * len(blocks), desc="neighbours", unit="query", delay=2, disable=not progress
    ) as bar:
        first = 0
        for block in blocks:
            for these, near, at in _nearest_in(block, queries, k, index, effort, memory_mb):
                if first or near.shape[1] < k:
                    # Earlier blocks stand first and the sort is stable, so that equal ones stay in their order
                    near, order = torch.cat([similarity[these], near], 1).sort(dim=1, descending=True, stable=True)
                    at = torch.cat([position[these], first + at], 1).gather(1, order)
                similarity[these], position[these] = near[:, :k], at[:, :k]
                bar.update(len(near))
            first += len(block)
    return similarity, position


def _nearest_in(
    block: Tensor, queries: Tensor, k: int, index: str, effort: float, memory_mb: float
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Give, for some queries at a time, similarity and position in the block of their nearest rows there.

    The block's normalised rows and its index are gone before the next block makes its own.
    """
    rows, k = unit_rows(block), min(k, len(block))
    find = _index(rows, index, effort, k)
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        some = unit_rows(queries[start : start + QUERIES_AT_ONCE])
        if find is None:
            for these, near, at in nearest_rows(rows, some, k, memory_mb / 2):
                yield slice(start + these.start, start + these.stop), near, at
        else:
            yield slice(start, start + len(some)), *_nearest(find, rows, some, k, exact=index == "flat")


def search_others(features: Tensor, k: int, **settings: Any) -> tuple[Tensor, Tensor]:
    """Find the ``k`` nearest other rows of each row: ``search`` of a set in itself, without the row's own entry.

    Args:
        features: float ``[N,D]``.
        k: Number of neighbours, at most ``N - 1``.
        settings: The keywords of ``search``.

    Returns:
        As ``search``, ``[N,k]`` both.

    Raises:
        ValueError: ``k`` is not between 1 and ``N - 1``.
        UserError: As ``search``.
    """
    if not is_count(k) or k >= len(features):
        raise ValueError(f"search_others: k = {k!r} other rows of a set of {len(features)}.")
    return _without_own(*search(features, features, k + 1, **settings), torch.arange(len(features)))


def recall_of(
    position: Tensor,
    bank: Tensor,
    queries: Tensor,
    ks: Sequence[int],
    *,
    others: bool = False,
    memory_mb: float = MEMORY_MB,
) -> dict[int, float]:
    """Return which fraction of the true neighbours a search has found, for each ``k``.

    It is compared with exact search over at most 1,000 queries, evenly spaced. A found row counts when its cosine
    similarity is that of the ``k``-th true neighbour or higher (within 1e-6), so that the choice between equal
    neighbours does not matter.

    Args:
        position: int64 ``[Q,K]``, what ``search``, or ``search_others``, has found.
        bank, queries: What was searched.
        ks: Numbers of neighbours, at most ``K``.
        others: The queries are the bank, and a row is not its own neighbour.
        memory_mb: As ``search``.
    """
    count = min(len(queries), RECALL_QUERIES)
    chosen = torch.linspace(0, len(queries) - 1, count).round().long()
    most = max(ks)
    exact = search(bank, queries[chosen], most + others, memory_mb=memory_mb)
    similarity = (_without_own(*exact, chosen) if others else exact)[0]
    found = dict.fromkeys(ks, 0)
    for row, least in zip(chosen.tolist(), similarity, strict=True):
        cosine = unit_rows(bank[position[row, :most]]) @ unit_rows(queries[row : row + 1])[0]
        for k in found:
            found[k] += int((cosine[:k] >= least[k - 1] - 1e-6).sum())
    return {k: hits / (count * k) for k, hits in found.items()}


def _without_own(similarity: Tensor, position: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    own = position == rows[:, None]
    # A row with many equals may not be among its own k + 1 nearest; then the last one is one too many
    own[~own.any(1), -1] = True
    width = position.shape[1] - 1
    return similarity[~own].view(-1, width), position[~own].view(-1, width)


def check_index(index: str, effort: float, memory_mb: float) -> None:
    """Raise a UserError for a kind of index there is not, or a setting outside its range."""
    if index not in INDEXES:
        raise UserError(f"eval.index: there is no '{index}'; use one of {', '.join(INDEXES)}.")
    if effort <= 0:
        raise UserError(f"eval.index_effort is {effort}; set it above 0 (1 is usual).")
    if memory_mb <= 0:
        raise UserError(f"eval.search_memory_mb is {memory_mb}; set it above 0 ({MEMORY_MB} is usual).")


def _block_rows(dim: int, index: str, memory_mb: float) -> int:
    """How many rows fit the budget: the normalised rows, and the copy that an index keeps of them."""
    copy = {"flat": 0, "half": 2 * dim, "ivf": 4 * dim + 8, "hnsw": 4 * dim + 300}[index]
    if index == "flat" and _gpus():
        copy = 4 * dim  # on its way there
    return max(1, int(memory_mb * 1e6) // (4 * dim + copy))


def _gpus() -> int:
    import faiss

    return int(faiss.get_num_gpus())


def _index(rows: Tensor, kind: str, effort: float, k: int) -> _Find | None:
    """Return the search of a block: ``(queries, k) -> similarity, position``, position -1 where nothing was found.

    None where the rows themselves are compared, on the CPU.
    """
    import faiss

    count, dim = rows.shape
    lists = max(1, min(round(4 * math.sqrt(count)), count // 39))  # 39: the fewest rows a list that faiss trains on
    visited = max(1, min(lists, math.ceil(lists * effort / 16)))
    if kind == "ivf" and visited == lists:
        kind = "flat"
    gpus = _gpus() if kind != "hnsw" and max(k + 1, visited) <= GPU_LARGEST_K else 0
    if kind == "flat" and not gpus:
        return None
    index: Any
    if kind == "ivf":
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = visited
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 80
        index.hnsw.efSearch = max(k, round(64 * effort))
    elif kind == "half" and not gpus:
        index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexFlatIP(dim)
    if gpus:
        shards = _shards(index, min(gpus, count), half=kind == "half")
        shards_of: Any = faiss.IndexShards
        index = shards_of(dim, True, True)  # a thread for each; positions go on from one shard to the next
        for shard in shards:
            index.add_shard(shard)
    if not index.is_trained:
        index.train(rows.numpy())
    index.add(rows.numpy())

    def find_in_index(queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        similarity, position = index.search(queries.numpy(), k)
        return torch.from_numpy(similarity), torch.from_numpy(position)

    return find_in_index


def _shards(index: Any, gpus: int, half: bool) -> list[Any]:
    """Return an empty copy of the index for each GPU."""
    import faiss

    options = faiss.GpuClonerOptions()
    options.useFloat16 = half
    return [faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), gpu, index, options) for gpu in range(gpus)]


def _nearest(find: _Find, rows: Tensor, queries: Tensor, k: int, exact: bool) -> tuple[Tensor, Tensor]:
    """Return the ``k`` nearest of a block, equal ones by position, all of them found."""
    # One more than needed shows whether there are equal ones on both sides of the cut
    more = min(k + 1, len(rows)) if exact else k
    similarity, position = in_order(*find(queries, more))
    if exact:
        again = similarity[:, k] == similarity[:, k - 1] if more > k else torch.zeros(len(queries), dtype=torch.bool)
    else:
        again = (position < 0).any(1)  # the lists, or the part of the graph, hold fewer than k
    similarity, position = similarity[:, :k], position[:, :k]
    if again.any():
        similarity, position = similarity.clone(), position.clone()
        similarity[again], position[again] = _by_comparison(rows, queries[again], k)
    return similarity, position


def _by_comparison(rows: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` nearest by the whole table of similarities, of equal ones those of the lowest position."""
    chunks = torch.split(queries, max(1, 8_000_000 // len(rows)))
    similarities, positions = zip(*(lowest_of_equal(chunk @ rows.T, k) for chunk in chunks), strict=True)
    return torch.cat(similarities), torch.cat(positions)
