"""Batch normalisation over parts of the batch, so that statistics cannot tell a query which key is its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selfsup.functional.collectives import rank_of


class SplitBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that normalises consecutive parts of the batch apart, as that many devices would.

    Running statistics follow the mean over the parts. In evaluation it is a plain ``BatchNorm2d``, with the same
    keys in the state dict. A batch that does not divide has parts that differ by one image.

    Args:
        splits: Number of parts.
    """

    def __init__(self, num_features: int, splits: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps=eps)
        self.momentum: float = momentum
        self.splits = splits

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[N,C,H,W]``. Raises ValueError when the batch has fewer images than there are parts."""
        if not self.training:
            return super().forward(x)
        if len(x) < self.splits:
            raise ValueError(f"a batch of {len(x)} images cannot be split into {self.splits} parts")
        running_mean, running_var = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
        means, variances, parts = [], [], []
        for part in x.tensor_split(self.splits):
            mean, variance = running_mean.clone(), running_var.clone()
            parts.append(F.batch_norm(part, mean, variance, self.weight, self.bias, True, self.momentum, self.eps))
            means.append(mean)
            variances.append(variance)
        running_mean.copy_(torch.stack(means).mean(0))
        running_var.copy_(torch.stack(variances).mean(0))
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return torch.cat(parts)


@contextlib.contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Let a network in evaluation mode normalise with the statistics of each batch, as in training.

    Running statistics, which lag behind while a network has made few steps, are neither used nor moved.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    running = [(norm.running_mean, norm.running_var) for norm in norms]
    try:
        for norm in norms:
            norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, (mean, variance) in zip(norms, running, strict=True):
            norm.running_mean, norm.running_var = mean, variance


def split_batch_norm(module: nn.Module, splits: int) -> None:
    """Replace every ``BatchNorm2d`` inside ``module`` by a :class:`SplitBatchNorm2d` with the same state.

    Layers that carry more than normalisation (timm's fused norm-activation layers) keep their type: they are
    subclasses with another forward, and are left alone. Raises ValueError for a layer without momentum, scales or
    running statistics.
    """
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            if child.momentum is None or not (child.affine and child.track_running_stats):
                raise ValueError(f"{child} cannot be split: it needs a momentum, scales and running statistics")
            split = SplitBatchNorm2d(child.num_features, splits, child.eps, child.momentum)
            # the very tensors, so that device, precision and what is frozen stay as they are
            for key, tensor in (*child.named_parameters(), *child.named_buffers()):
                setattr(split, key, tensor)
            setattr(module, name, split.train(child.training))
        else:
            split_batch_norm(child, splits)


def shuffle(images: Tensor, permutation: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return this rank's share of the images of all ranks in the order of ``permutation`` ``[B]`` (ShuffleBN).

    Every image goes to the rank that wants it and to no other, so that what is sent does not grow with the number of
    ranks. No gradient flows: keys need none.

    Args:
        images: ``[N,…]``, the same number on every rank.
        permutation: int64 ``[B]`` of the images of all ranks, the same on every rank. On the CPU it spares a wait.
        group: The ranks; None for a single process.
    """
    images = images.detach()
    if group is None or dist.get_world_size(group) == 1:
        return images[permutation.to(images.device, non_blocking=True)]
    rank, local, permutation = rank_of(group), len(images), permutation.cpu()
    shares = torch.split(permutation, local)
    given = [share[share // local == rank] % local for share in shares]  # to each rank, in the order that it asks for
    owners = shares[rank] // local
    received = torch.empty_like(images, memory_format=torch.contiguous_format)
    counts = torch.bincount(owners, minlength=len(shares)).tolist()
    sent = images[torch.cat(given).to(images.device, non_blocking=True)].contiguous()
    dist.all_to_all_single(received, sent, counts, [len(part) for part in given], group=group)
    # what came is sorted by its owner; the inverse of that sort puts it in the order of the share
    return received[owners.argsort(stable=True).argsort().to(images.device, non_blocking=True)]


def unshuffle(keys: Tensor, permutation: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Undo :func:`shuffle`: return the keys that belong to this rank's own images, in their order."""
    return shuffle(keys, permutation.argsort(), group)
