"""What the attention and the token maps of a transformer look like: near or far, one map or many, smooth or rough."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selfsup.functional.arguments import count, floats, integers, kind, looks_at, number, within


def attention_distance(attention: Tensor, patch_size: float = 1.0) -> Tensor:
    """Return how far the queries of each head look on average: ``[B,h]`` in the unit of ``patch_size``.

    ``mean_q Σ_k A_qk · patch · ‖position_q - position_k‖`` (Dosovitskiy et al., arXiv:2010.11929; Park et al., "What Do
    Self-Supervised Vision Transformers Learn?", arXiv:2305.00729).

    Args:
        attention: float ``[B,h,S²,S²]``: rows are queries and sum to 1, tokens lie on a square grid, row by row; see
            :func:`patch_attention` for networks with class tokens.
        patch_size: Side of a patch, in pixels or any unit.

    Raises:
        ValueError: The tokens do not lie on a square grid.
    """
    (attention,) = floats("attention_distance", "[B,h,Q,K]", attention=attention)
    number("attention_distance", patch_size=patch_size)
    side = _side(attention)
    x = torch.arange(side, device=attention.device, dtype=attention.dtype)
    position = torch.cartesian_prod(x, x)
    return patch_size * (attention * torch.cdist(position, position)).sum(3).mean(2)


def attention_nmi(attention: Tensor) -> Tensor:
    """Return the normalised mutual information of query and key position for each head: ``[B,h]`` in [0, 1].

    ``I(q;k) / √(H(q) H(k))`` with ``p(q)`` uniform and ``p(k|q)`` the attention. 0 when every query sees the same map
    (attention collapse), 1 when the map tells the query (arXiv:2305.00729). Where all queries see a single key there is
    nothing to tell, and the value is 0.

    Args:
        attention: float ``[B,h,Q,K]``; rows are queries and sum to 1.

    Raises:
        ValueError: Another shape; on a CPU also rows that are no distributions.
    """
    (attention,) = floats("attention_nmi", "[B,h,Q,K]", attention=attention)
    if looks_at(attention) and (attention.min() < 0 or (attention.sum(3) - 1).abs().max() > 0.05):
        raise ValueError("attention_nmi: the rows of attention must be at least 0 and sum to 1.")
    queries = attention.shape[2]
    joint = attention / queries
    keys = joint.sum(2)
    key_entropy = -torch.special.xlogy(keys, keys).sum(2)
    query_entropy = torch.log(torch.tensor(queries, dtype=attention.dtype, device=attention.device))
    # I = H(q) + H(k) - H(q,k)
    information = query_entropy + key_entropy + torch.special.xlogy(joint, joint).sum((2, 3))
    scale = (query_entropy * key_entropy).clamp_min(0).sqrt()
    flat = scale <= 8 * torch.finfo(attention.dtype).eps
    return torch.where(flat, torch.zeros_like(scale), information.clamp_min(0) / scale.masked_fill(flat, 1.0))


def patch_attention(attention: Tensor, prefix: int) -> Tensor:
    """Return the attention among patches: class and register tokens dropped, rows summing to 1 again.

    Args:
        attention: float ``[B,h,prefix+P,prefix+P]``.
        prefix: Number of tokens before the patches.

    Returns:
        float ``[B,h,P,P]``. A query that looks at prefix tokens alone is spread evenly.

    Raises:
        ValueError: Another shape, or no patches after the prefix; on a CPU also negative attention.
    """
    (attention,) = floats("patch_attention", "[B,h,T,T]", attention=attention)
    count("patch_attention", least=0, prefix=prefix)
    if prefix >= attention.shape[3]:
        raise ValueError(f"patch_attention: prefix={prefix} leaves none of {attention.shape[3]} tokens.")
    if looks_at(attention) and attention.min() < 0:
        raise ValueError("patch_attention: attention must be at least 0.")
    patches = attention[:, :, prefix:, prefix:]
    total = patches.sum(3, keepdim=True)
    even = torch.full_like(patches, 1 / patches.shape[3])
    return torch.where(total > 0, patches / total.clamp_min(torch.finfo(attention.dtype).tiny), even)


def commonest_offset(key: Tensor) -> tuple[Tensor, Tensor]:
    """Return in which direction each head looks most often, and how often.

    A head whose share is near 1 moves features by a constant step, as a convolution could (Walmer et al., "Teaching
    Matters: Investigating the Role of Supervision in Vision Transformers", arXiv:2212.03862, offset local attention
    heads; only the README of its code was at hand).

    Args:
        key: int64 ``[B,h,S²]``: for each query, the patch with the most attention; patches lie on a square grid, row
            by row.

    Returns:
        int64 ``[h,2]``, the offset of the key from the query, down and to the right (the first of equally common
        ones), and float64 ``[h]``, its share of all queries of all images.

    Raises:
        ValueError: The tokens do not lie on a square grid.
    """
    integers("commonest_offset", "[B,h,Q]", key=key)
    queries = key.shape[2]
    within("commonest_offset", 0, queries, key=key)
    side = math.isqrt(queries)
    if not key.numel() or side * side != queries:
        raise ValueError(f"commonest_offset: key {list(key.shape)} is that of no square grid of patches.")
    query = torch.arange(queries, device=key.device)
    down, right = key // side - query // side, key % side - query % side
    width = 2 * side - 1
    number = ((down + side - 1) * width + right + side - 1).transpose(0, 1).flatten(1)
    counts = torch.stack([torch.bincount(row, minlength=width * width) for row in number])
    best = counts.argmax(1)
    offset = torch.stack([best // width, best % width], 1) - (side - 1)
    return offset, counts.amax(1).double() / number.shape[1]


def attention_iou(attention: Tensor, inside: Tensor, mass: float = 0.6) -> Tensor:
    """Return how far the patches that hold most of a query's attention are those of an object: ``[B,h]``.

    Intersection over union of the object and the fewest patches that hold ``mass`` of the attention (the threshold of
    DINO, arXiv:2104.14294; arXiv:2212.03862 compares it with masks so). An image without an object gives NaN.

    Args:
        attention: float ``[B,h,P]``: of one query, as a rule the class token, to the patches.
        inside: bool ``[B,P]``: which patches show the object.
        mass: Share of the attention to the patches, in (0, 1].

    Raises:
        ValueError: Shapes that do not fit.
    """
    (attention,) = floats("attention_iou", "[B,h,P]", attention=attention)
    number("attention_iou", above=0, mass=mass)
    fits = isinstance(inside, Tensor) and inside.dtype == torch.bool and inside.ndim == 2
    if not fits or inside.is_sparse or inside.device != attention.device or inside.shape != attention[:, 0].shape:
        raise ValueError(f"attention_iou: inside must be bool {list(attention[:, 0].shape)}, got {kind(inside)}.")
    if mass > 1:
        raise ValueError(f"attention_iou: mass must be a number above 0 and at most 1, got {mass}.")
    ordered, order = attention.sort(dim=2, descending=True, stable=True)
    share = ordered.cumsum(2) / ordered.sum(2, keepdim=True).clamp_min(torch.finfo(ordered.dtype).tiny)
    # a patch is taken while those before it do not hold the mass yet
    before = torch.cat([torch.zeros_like(share[..., :1]), share[..., :-1]], 2)
    eps = 8 * torch.finfo(share.dtype).eps
    taken = torch.zeros_like(before, dtype=torch.bool).scatter(2, order, before < mass - eps)
    object_: Tensor = inside[:, None].expand_as(taken)
    both, either = (taken & object_).sum(2), (taken | object_).sum(2)
    iou = both.to(attention.dtype) / either
    return torch.where(inside.any(1)[:, None], iou, torch.nan)


def fourier_log_amplitude(features: Tensor) -> Tensor:
    """Return the relative log amplitude of feature maps from the zero to the highest frequency: ``[B,S//2+1]``.

    ``mean_d log |F_d(f, f)| - mean_d log |F_d(0, 0)|`` for the frequencies ``f = 0, 1/S, …, 1/2`` of the half diagonal
    of the 2-D discrete Fourier transform ``F_d`` of channel ``d``, natural logarithm. Contrastive networks have little
    at high frequencies, masked image models have much (arXiv:2305.00729). Amplitudes below the rounding error of
    the map count as that.

    Args:
        features: float ``[B,D,S,S]``.

    Raises:
        ValueError: The maps are not square.
    """
    (maps,) = floats("fourier_log_amplitude", "[B,D,S,S]", features=features)
    side = maps.shape[2]
    amplitude = torch.fft.fft2(maps).abs().diagonal(dim1=2, dim2=3)[..., : side // 2 + 1]
    floor = maps.abs().sum((2, 3))[..., None] * torch.finfo(maps.dtype).eps
    logarithm = amplitude.maximum(floor.clamp_min(torch.finfo(maps.dtype).tiny)).log()
    relative: Tensor = (logarithm - logarithm[..., :1]).mean(1)
    return relative


def _side(attention: Tensor) -> int:
    queries, keys = attention.shape[2:]
    side = math.isqrt(queries)
    if queries != keys or side * side != queries:
        raise ValueError(
            f"attention_distance: attention of {queries} queries and {keys} keys is that of no square grid of patches."
        )
    return side
