"""Codes of samples that are spread over two processes are the codes of all of them together."""

import torch
from gloo import Ranks
from torch import Tensor

from selfsup.distributed import world
from selfsup.functional import sinkhorn


def scores() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    table = torch.rand(11, 5, generator=generator, dtype=torch.float64) * 2 - 1
    table[7, 2] = 1.5  # the largest is on one rank only
    return table


def codes_of_a_share(rank: int, dtype: torch.dtype) -> Tensor:
    share = scores()[:4] if rank == 0 else scores()[4:]
    return sinkhorn(share.to(dtype), 0.05, 3, world())


def test_sharded_sinkhorn_is_the_whole(two_ranks: Ranks) -> None:
    """Shares of 4 and 7 samples."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        sharded = torch.cat(two_ranks.run(codes_of_a_share, dtype))
        torch.testing.assert_close(sharded.double(), sinkhorn(scores()), rtol=tolerance, atol=tolerance)
        alone = torch.cat([sinkhorn(scores()[:4]), sinkhorn(scores()[4:])])
        assert (alone - sharded).abs().max() > 1e-2
