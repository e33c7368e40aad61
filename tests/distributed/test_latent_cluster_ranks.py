"""Codes of patches whose images are spread over two processes are the codes of all of them together."""

import torch
from gloo import Ranks
from torch import Tensor

from selfsup.distributed import world
from selfsup.functional import positionwise_sinkhorn


def scores() -> Tensor:
    return torch.randn(11, 3, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def codes_of_a_share(rank: int, dtype: torch.dtype) -> Tensor:
    share = scores()[:4] if rank == 0 else scores()[4:]
    return positionwise_sinkhorn(share.to(dtype), 0.06, 3, world())


def test_sharded_codes_are_the_whole(two_ranks: Ranks) -> None:
    """Shares of 4 and 7 images."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        sharded = torch.cat(two_ranks.run(codes_of_a_share, dtype))
        torch.testing.assert_close(sharded.double(), positionwise_sinkhorn(scores()), rtol=tolerance, atol=tolerance)
        alone = torch.cat([positionwise_sinkhorn(scores()[:4]), positionwise_sinkhorn(scores()[4:])])
        assert (alone - sharded).abs().max() > 1e-2
