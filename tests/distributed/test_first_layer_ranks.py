"""TrAct on two ranks is TrAct on one."""

from __future__ import annotations

import torch
from gloo import Ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from selfsup.first_layer import TrAct


def gradients(rank: int, ranks: int) -> list[Tensor]:
    """Return the gradients of this rank's share of two batches, the second of other images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3)).double()
    tract = TrAct(model, 0.1)
    module = model if ranks == 1 else DistributedDataParallel(model)
    found = []
    for step in range(2):
        images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        images *= torch.arange(1, 7, dtype=torch.float64)[:, None, None, None]  # ranks see other moments
        model.zero_grad()
        module(images.chunk(ranks)[rank]).square().mean().backward()
        tract.precondition()
        found.append(model[0].weight.grad.clone())
    return found


def test_two_ranks_take_the_moments_of_all_images(two_ranks: Ranks) -> None:
    alone = gradients(0, 1)
    for found in two_ranks.run(gradients, 2):
        torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-12)
