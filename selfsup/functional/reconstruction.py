"""Regression at masked places: pixels of patches and features of tokens as targets, and the errors of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import count, floats, kind, number


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut images into square patches, row by row of the grid.

    Args:
        images: ``[N,C,H,W]``.
        patch: Side of a patch in pixels.

    Returns:
        ``[N, H/patch · W/patch, patch² · C]``; the pixels of a patch row by row, the channels of a pixel together.

    Raises:
        ValueError: A side that is no multiple of ``patch``.

    Source:
        He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022.
    """
    count("patchify", patch=patch)
    (images,) = floats("patchify", "[N,C,H,W]", images=images)
    if images.shape[2] % patch or images.shape[3] % patch:
        raise ValueError(f"patchify: images {list(images.shape)} are not made of whole patches; patch is {patch}.")
    cut = images.unfold(2, patch, patch).unfold(3, patch, patch)  # [N,C,rows,columns,patch,patch]
    return cut.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, grid: tuple[int, int], channels: int = 3) -> Tensor:
    """Put patches together to images ``[N,C,H,W]``, the inverse of :func:`patchify`.

    Args:
        patches: ``[N,L,patch² · C]``.
        grid: Rows and columns, whose product is ``L``.
        channels: ``C``.

    Raises:
        ValueError: The shapes do not fit together.
    """
    count("unpatchify", channels=channels)
    (patches,) = floats("unpatchify", "[N,L,P]", patches=patches)
    rows, columns = grid
    side = round((patches.shape[-1] / channels) ** 0.5)
    if patches.shape[1] != rows * columns or side * side * channels != patches.shape[2]:
        raise ValueError(
            f"unpatchify: patches {list(patches.shape)} do not fill a grid of {rows}×{columns} with square patches of "
            f"{channels} channels."
        )
    pixels = patches.view(len(patches), rows, columns, side, side, channels).permute(0, 5, 1, 3, 2, 4)
    return pixels.reshape(len(patches), channels, rows * side, columns * side)


def normalize_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    r"""Give each patch mean 0 and variance 1: :math:`(t - \bar t) / \sqrt{s^2 + \epsilon}`, s² the unbiased variance.

    Args:
        patches: ``[N,L,P]``, P at least 2; float32 at least inside.
        eps: ε, above 0; a patch of one colour becomes 0.

    Source:
        He et al., 2022, "normalized pixels".
    """
    (patches,) = floats("normalize_patches", "[N,L,P]", patches=patches)
    number("normalize_patches", above=0, eps=eps)
    with torch.autocast(patches.device.type, enabled=False):
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) * (variance + eps).rsqrt()


def layer_target(layers: Sequence[Tensor], eps: float = 1e-5) -> Tensor:
    r"""Average the outputs of several layers, each token normalised over its channels before and after.

    .. math:: t = \mathrm{LN}\Bigl(\frac1K \sum_k \mathrm{LN}(h_k)\Bigr)

    LN has no weights: each token gets mean 0 and variance 1 over its channels.

    Args:
        layers: K tensors ``[N,L,D]``.
        eps: Added to a variance.

    Returns:
        ``[N,L,D]``, float32 at least.

    Raises:
        ValueError: No layers, or shapes that differ.

    Source:
        Baevski et al., "data2vec", 2022; facebookresearch/data2vec_vision af9a363.
    """
    if not layers:
        raise ValueError("layer_target: layers is empty.")
    number("layer_target", above=0, eps=eps)
    named: dict[str, Any] = {f"layers[{place}]": layer for place, layer in enumerate(layers)}
    precise = floats("layer_target", "[N,L,D]", **named)
    with torch.autocast(layers[0].device.type, enabled=False):
        width = (precise[0].shape[-1],)
        mean = torch.stack([F.layer_norm(layer, width, eps=eps) for layer in precise]).mean(dim=0)
        return F.layer_norm(mean, width, eps=eps)


def masked_squared_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    r"""Mean squared error over the masked tokens of the batch and their channels; the loss of MAE.

    .. math:: \ell = \frac{1}{|M|} \sum_{l \in M} \frac1P \lVert \hat y_l - t_l \rVert^2

    Args:
        prediction, target: ``[N,L,P]``; nothing is normalised here. Float16 and bfloat16 become float32.
        mask: bool ``[N,L]``, True = masked. With none masked the loss is 0.

    Returns:
        Scalar. With as many masked tokens in each image, DDP's mean over ranks is the whole batch's.

    Raises:
        ValueError: The shapes differ.

    Source:
        He et al., 2022; facebookresearch/mae efb2a80.
    """
    prediction, target = _checked("masked_squared_error", prediction, target, mask)
    with torch.autocast(prediction.device.type, enabled=False):
        return _masked_mean((prediction - target).square(), mask)


def masked_absolute_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    r"""Mean absolute error over the masked tokens of the batch and their channels; the loss of SimMIM.

    Arguments and result as :func:`masked_squared_error`.

    Source:
        Xie et al., "SimMIM", 2022; microsoft/SimMIM d3e29bc.
    """
    prediction, target = _checked("masked_absolute_error", prediction, target, mask)
    with torch.autocast(prediction.device.type, enabled=False):
        return _masked_mean((prediction - target).abs(), mask)


def masked_smooth_l1(prediction: Tensor, target: Tensor, mask: Tensor, beta: float = 1.0) -> Tensor:
    r"""Mean smooth L1 error over the masked tokens of the batch and their channels; the loss of data2vec.

    .. math:: \ell(d) = d^2 / 2\beta \text{ where } |d| < \beta, \quad |d| - \beta / 2 \text{ elsewhere}

    Arguments and result as :func:`masked_squared_error`.

    Args:
        beta: β, above 0, from where on the error is linear.

    Source:
        Baevski et al., "data2vec", 2022, equation 3.
    """
    prediction, target = _checked("masked_smooth_l1", prediction, target, mask)
    number("masked_smooth_l1", above=0, beta=beta)
    with torch.autocast(prediction.device.type, enabled=False):
        return _masked_mean(F.smooth_l1_loss(prediction, target, reduction="none", beta=beta), mask)


def _checked(function: str, prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    precise = floats(function, "[N,L,P]", prediction=prediction, target=target)
    right = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == prediction.shape[:2]
    if not right or mask.device != prediction.device or mask.is_sparse:
        wanted = f"bool {list(prediction.shape[:2])} on {prediction.device}"
        raise ValueError(f"{function}: mask must be {wanted}, got {kind(mask)}.")
    return precise


def _masked_mean(error: Tensor, mask: Tensor) -> Tensor:
    # a product and no choice of rows, whose number the host would have to wait for
    return (error.mean(dim=-1) * mask).sum() / mask.sum().clamp(min=1)
