"""Less memory for more arithmetic: what backpropagation needs of a network is computed again instead of kept."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

#: What a network gives: one tensor, or several.
Outputs = TypeVar("Outputs", Tensor, tuple[Tensor, ...])


def in_chunks(
    function: Callable[..., Outputs], images: Tensor, chunk_size: int, network: nn.Module, *others: Tensor | None
) -> Outputs:
    r"""Return ``function(images, *others)``, computed for at most ``chunk_size`` images at a time.

    Nothing of a chunk is kept but its output. The backward pass computes one chunk after the other again, with the
    dropout of the first time, and adds up their gradients:

    .. math:: \frac{dL}{d\theta} = \sum_c \Bigl(\frac{\partial f_\theta(x_c)}{\partial \theta}\Bigr)^\top
              \frac{\partial L}{\partial f(x_c)}

    which is exact for any loss of the outputs, however it couples them. The chunks are as equal as can be.

    Each chunk has batch statistics of its own. Running statistics follow the mean over the chunks and count the whole
    as one batch, as :class:`~selfsup.nn.SplitBatchNorm2d` does; see :func:`unchanged_statistics` for the backward pass.

    Args:
        function: The network, or one of its methods; gives one tensor ``[N,…]`` or a tuple of them.
        images: ``[N,…]``.
        chunk_size: At least 1.
        network: Where ``function`` keeps its BatchNorm layers.
        others: What belongs to the images one by one, ``[N,…]``, such as masks; None is passed on.

    Source:
        Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021 (GradCache).
    """
    count = math.ceil(len(images) / chunk_size)
    chunks = [[None] * count if given is None else given.tensor_split(count) for given in (images, *others)]
    statistics = _running_statistics(network)
    before = [value.clone() for value in statistics]
    moments = [value for value in statistics if value.is_floating_point()]  # the others count batches
    sums = [torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32)) for value in moments]
    outputs = []
    for chunk in zip(*chunks, strict=True):
        _assign(statistics, before)
        # a single chunk is run twice too: the next call may be of another view, whose activations would add to its own
        outputs.append(checkpoint(function, *chunk, use_reentrant=False))
        for total, value in zip(sums, moments, strict=True):
            total += value
    _assign(moments, [total / count for total in sums])
    if isinstance(outputs[0], Tensor):
        return torch.cat(outputs)
    return cast(Outputs, tuple(map(torch.cat, zip(*outputs, strict=True))))


@contextlib.contextmanager
def unchanged_statistics(network: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics as they are: around a backward pass that computes forward passes again."""
    statistics = _running_statistics(network)
    before = [s.clone() for s in statistics]
    try:
        yield
    finally:
        _assign(statistics, before)


def _running_statistics(network: nn.Module) -> list[Tensor]:
    """Running means, variances and counts of batches that a forward pass would move."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


@torch.no_grad()
def _assign(targets: list[Tensor], values: list[Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)
