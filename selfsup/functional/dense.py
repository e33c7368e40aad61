"""Losses between the cells of two feature maps, and which cells belong together.

A map ``[B,D,S,S]`` has S² cells, numbered row by row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import floats, integers, kind, looks_at, number, within
from selfsup.functional.contrastive import info_nce
from selfsup.functional.geometry import location_grid

MAPS = "[B,D,H,W]"


@torch.no_grad()
def dense_match(features_q: Tensor, features_k: Tensor) -> Tensor:
    """Return, for each cell of the query's map, the cell of the key's map that is most like it.

    ``argmax_j cos(q_i, k_j)`` within each image, in float32 at least; the first of several equal ones.

    Args:
        features_q, features_k: Maps ``[B,D,S,S]``; L2-normalised over D here.

    Returns:
        int64 ``[B,S²]``.

    Raises:
        ValueError: The shapes differ or are not maps.

    Source:
        Wang et al., "Dense Contrastive Learning for Self-Supervised Visual Pre-Training", 2021, section 3.4.
    """
    features_q, features_k = floats("dense_match", MAPS, features_q=features_q, features_k=features_k)
    return _cosines(features_q, features_k).argmax(dim=2)


def dense_info_nce(query: Tensor, key: Tensor, match: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """InfoNCE over cells: each cell of the query has its matched cell of the key as the positive.

    The mean over all B·S² cells of :func:`info_nce`. The logits are ``[B·S², K+1]``, which is what limits the batch:
    411 MB in float32 for 32 images, S = 7 and K = 65536.

    Args:
        query, key: Maps ``[B,D,S,S]``; L2-normalised over D here. Gradients reach both.
        match: int64 ``[B,S²]``: the key's cell for each cell of the query, see :func:`dense_match`.
        negatives: ``[K,D]``, used as they are stored.
        temperature: τ > 0.

    Raises:
        ValueError: Shapes that do not fit.

    Source:
        Wang et al., "Dense Contrastive Learning for Self-Supervised Visual Pre-Training", 2021, section 3.3.
    """
    query, key = floats("dense_info_nce", MAPS, query=query, key=key)
    cells, candidates = _cells(query), _cells(key)
    integers("dense_info_nce", f"[{cells.shape[0]},{cells.shape[1]}]", match=match)
    within("dense_info_nce", 0, cells.shape[1], match=match)
    positives = candidates.gather(1, match[:, :, None].expand_as(candidates))
    return info_nce(cells.flatten(0, 1), positives.flatten(0, 1), negatives, temperature)


def pixpro_mask(to_source_q: Tensor, to_source_k: Tensor, size: int, threshold: float = 0.7) -> Tensor:
    r"""Return which cells of two views of an image show the same place.

    .. math:: A_{ij} = \left[ \lVert c_i - c'_j \rVert < t \max(d, d') \right]

    with c the centres of the cells in the source image, in units of its sides, and d the diagonal of a view's cell
    there. A mirrored view has the diagonal it had before, a turned one too. A view without a map (NaN) matches nothing.

    The authors' code divides pixel positions by ``W - 1`` and ends a box at its last pixel; here the outer edges of
    the source are 0 and 1 and a box ends at its outer edge (see ``View.to_source``), so that equal crops of an image
    match alike at any resolution. The paper allows equality, the code and this function do not.

    Args:
        to_source_q, to_source_k: ``[B,2,3]``, the maps of the two views.
        size: Cells along a side, S.
        threshold: t.

    Returns:
        bool ``[B,S²,S²]``: cells of the first view by cells of the second.

    Source:
        Xie et al., "Propagate Yourself: Exploring Pixel-Level Consistency for Unsupervised Visual Representation
        Learning", 2021, equation 1.
    """
    to_source_q, to_source_k = floats(
        "pixpro_mask", "[B,2,3]", nan=True, to_source_q=to_source_q, to_source_k=to_source_k
    )
    number("pixpro_mask", threshold=threshold)
    centre_q, centre_k = (location_grid(to_source, size).flatten(1, 2) for to_source in (to_source_q, to_source_k))
    distance = torch.linalg.vector_norm(centre_q[:, :, None] - centre_k[:, None], dim=-1)
    # of the two edges of a cell this is the hypotenuse: |d| without a look at signs or at a rotation
    diagonal_q, diagonal_k = (
        torch.linalg.matrix_norm(to_source[:, :, :2]) / size for to_source in (to_source_q, to_source_k)
    )
    diagonal = torch.maximum(diagonal_q, diagonal_k)
    if looks_at(diagonal) and not diagonal.all():
        raise ValueError("pixpro_mask: to_source_q and to_source_k have a view without extent.")
    near: Tensor = distance / diagonal[:, None, None] < threshold
    return near


def pixpro_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    r"""Pixel-to-propagation consistency of PixPro, one direction; from -2 to 2.

    .. math:: -\frac{2}{B} \sum_b \frac{\sum_{ij} A_{bij} \cos(y_{bi}, x'_{bj})}{\sum_{ij} A_{bij}}

    An image whose views do not overlap adds 0 and stays in the mean. The factor 2 is the authors' code's; the paper
    has none. Their code adds 1e-6 to the denominator, which here is at least 1 instead: the same where there is no
    match, exact where there is.

    Args:
        prediction: y, the propagated map ``[B,D,S,S]``; L2-normalised over D here.
        target: x', the other view's map ``[B,D,S,S]``; normalised too. Gradients reach both: pass a target that
            carries none. Float16 and bfloat16 become float32.
        mask: A, bool ``[B,S²,S²]``: cells of the prediction by cells of the target.

    Returns:
        Scalar. A mean over a rank's own images, so that DDP's mean over ranks is the whole batch's.

    Raises:
        ValueError: Shapes that do not fit.

    Source:
        Xie et al., "Propagate Yourself: Exploring Pixel-Level Consistency for Unsupervised Visual Representation
        Learning", 2021, equation 5.
    """
    prediction, target = floats("pixpro_loss", MAPS, prediction=prediction, target=target)
    _check_mask("pixpro_loss", mask, prediction)
    similarity = _cosines(prediction, target)
    matches = mask.sum(dim=(1, 2)).clamp_min(1)
    return -2 * ((similarity * mask).sum(dim=(1, 2)) / matches).mean()


def pixcontrast_loss(query: Tensor, key: Tensor, mask: Tensor, temperature: float) -> Tensor:
    r"""PixContrast, one direction: cells of the other view that show the same place against all its cells.

    .. math:: \ell_{bi} = -\log \frac{\sum_{j} A_{bij} \exp(\cos(x_{bi}, x'_{bj}) / \tau)}
              {\sum_{j} \exp(\cos(x_{bi}, x'_{bj}) / \tau)}

    averaged over the cells of an image that have a match, then over the images. An image without a match adds 0 and
    stays in the mean: then the mean over ranks is the single process's, however the matches are spread.

    Args:
        query: x, map ``[B,D,S,S]``; L2-normalised over D here.
        key: x', the other view's map ``[B,D,S,S]``; normalised too. Gradients reach both: pass keys that carry none.
            Float16 and bfloat16 become float32.
        mask: A, bool ``[B,S²,S²]``: cells of the query by cells of the key.
        temperature: τ > 0.

    Returns:
        Scalar.

    Raises:
        ValueError: Shapes that do not fit.

    Source:
        Xie et al., "Propagate Yourself: Exploring Pixel-Level Consistency for Unsupervised Visual Representation
        Learning", 2021, equation 2.
    """
    query, key = floats("pixcontrast_loss", MAPS, query=query, key=key)
    number("pixcontrast_loss", above=0, temperature=temperature)
    _check_mask("pixcontrast_loss", mask, query)
    logits = _cosines(query, key) / temperature
    matched = mask.any(dim=2)
    # a cell without a match takes all for its matches: its loss is 0, and no infinity meets the backward pass
    positives = mask | ~matched[:, :, None]
    cell_loss = logits.logsumexp(dim=2) - logits.masked_fill(~positives, float("-inf")).logsumexp(dim=2)
    return ((cell_loss * matched).sum(dim=1) / matched.sum(dim=1).clamp_min(1)).mean()


def dense_alignment(features1: Tensor, features2: Tensor, mask: Tensor, alpha: float = 2) -> Tensor:
    """Return the mean distance of cells that show the same place in two views, to the power ``alpha``; 0 is perfect.

    The alignment of :func:`~selfsup.functional.diagnostics.alignment` with corresponding cells in the place of views:
    the mean of ``‖u_bi - v_bj‖^α`` over all pairs with ``A_bij``, ``u, v`` the L2-normalised cells.

    Args:
        features1, features2: Maps ``[B,D,S,S]``; L2-normalised over D here.
        mask: A, bool ``[B,S²,S²]``: cells of the first map by cells of the second, see :func:`pixpro_mask`.
        alpha: The power, above 0.

    Raises:
        ValueError: Shapes that do not fit; on a CPU also a mask without a pair.
    """
    features1, features2 = floats("dense_alignment", MAPS, features1=features1, features2=features2)
    number("dense_alignment", above=0, alpha=alpha)
    _check_mask("dense_alignment", mask, features1)
    pairs = mask.sum()
    if looks_at(features1) and not pairs:
        raise ValueError("dense_alignment: mask holds no pair of cells; the views do not overlap.")
    lengths1, lengths2 = (F.normalize(_cells(x), dim=2).square().sum(2) for x in (features1, features2))
    squares = (lengths1[:, :, None] + lengths2[:, None] - 2 * _cosines(features1, features2)).clamp_min(0)
    return (squares.pow(alpha / 2) * mask).sum() / pairs


def match_accuracy(features1: Tensor, features2: Tensor, mask: Tensor) -> Tensor:
    """Return how often the cell of the other view that is most alike shows the same place: from 0 to 1.

    Of the cells of the first map that have a pair in the mask, the share whose :func:`dense_match` is one of theirs.

    Args:
        features1, features2: Maps ``[B,D,S,S]``; L2-normalised over D here.
        mask: bool ``[B,S²,S²]``: cells of the first map by cells of the second, see :func:`pixpro_mask`.

    Raises:
        ValueError: Shapes that do not fit; on a CPU also a mask without a pair.
    """
    features1, features2 = floats("match_accuracy", MAPS, features1=features1, features2=features2)
    _check_mask("match_accuracy", mask, features1)
    paired = mask.any(2)
    if looks_at(features1) and not paired.any():
        raise ValueError("match_accuracy: mask holds no pair of cells; the views do not overlap.")
    right = mask.gather(2, dense_match(features1, features2)[:, :, None])[:, :, 0]
    return right.sum().to(features1.dtype) / paired.sum()


def _cells(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2)


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosines ``[B,S²,S²]`` of the cells of two maps."""
    with torch.autocast(a.device.type, enabled=False):
        a, b = (F.normalize(_cells(x), dim=2) for x in (a, b))
        return a @ b.transpose(1, 2)


def _check_mask(function: str, mask: Tensor, maps: Tensor) -> None:
    cells = maps.shape[2] * maps.shape[3]
    wanted = (len(maps), cells, cells)
    right = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == wanted
    if not right or mask.device != maps.device or mask.is_sparse:
        raise ValueError(f"{function}: mask must be bool {list(wanted)} on {maps.device}, got {kind(mask)}.")
