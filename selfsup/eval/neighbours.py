"""Exact nearest neighbours by cosine similarity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

GPU_LARGEST_K = 2048  # what faiss can select on a GPU


def search(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the ``k`` rows of the bank that are most similar to each query.

    Exhaustive inner-product search of faiss over L2-normalised rows, on the GPU where faiss sees one. Neighbours of
    equal similarity are in the order of their position; which of several equal ones is the last of the ``k`` is up to
    faiss.

    Args:
        bank: float ``[N,D]``.
        queries: float ``[Q,D]``.
        k: Number of neighbours, at most ``N``.

    Returns:
        Cosine similarity, float32 ``[Q,k]`` in descending order, and position in the bank, int64 ``[Q,k]``.

    Raises:
        ValueError: ``k`` is not between 1 and ``N``.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k = {k} neighbours of a bank of {len(bank)}")
    import faiss

    index: Any = faiss.IndexFlatIP(bank.shape[1])
    if faiss.get_num_gpus() > 0 and k <= GPU_LARGEST_K:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    index.add(_rows(bank).numpy())
    similarity, position = (torch.from_numpy(found) for found in index.search(_rows(queries).numpy(), k))
    by_position = position.argsort(dim=1)
    similarity, position = similarity.gather(1, by_position), position.gather(1, by_position)
    similarity, order = similarity.sort(dim=1, descending=True, stable=True)
    return similarity, position.gather(1, order)


def _rows(features: Tensor) -> Tensor:
    return F.normalize(features.detach().to("cpu", torch.float32), dim=1).contiguous()
