"""Two processes are one in the contrastive losses whose candidates or positives lie on other ranks."""

import pytest
import torch

from selfsup.distributed import world
from selfsup.functional import cross_view_nce, supervised_contrastive

RANKS = 2


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run_supervised(rank, features, positives):
    share = features.shape[1] // RANKS
    mine = slice(rank * share, (rank + 1) * share)
    local = features[:, mine].requires_grad_()
    loss = supervised_contrastive(local, positives[mine], 0.2, group=world())
    loss.backward()
    return loss.detach(), local.grad


def ragged_mask():
    """Rank 0 has one anchor, rank 1 has many: the mean over anchors is not the mean of the ranks' means."""
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[1, 4] = True
    mask[3:] = random(3, 6, seed=2) > -0.5
    return mask


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize(
    "positives",
    [
        torch.tensor([0, 1, 1, 0, 1, 2]),
        torch.tensor([-1, -1, -1, 3, 3, -1]),
        ragged_mask(),
        torch.zeros(6, 6, dtype=torch.bool),
    ],
    ids=["labels", "unlabelled-rank", "mask", "nothing"],
)
def test_supervised_contrastive_of_two_ranks_is_that_of_one_process(two_ranks, views, positives):
    features = random(views, 6, 4)
    leaf = features.clone().requires_grad_()
    loss = supervised_contrastive(leaf, positives, 0.2)
    loss.backward()
    losses, gradients = zip(*two_ranks.run(run_supervised, features, positives), strict=True)
    torch.testing.assert_close(torch.stack(losses).mean(), loss.detach(), rtol=1e-12, atol=1e-12)
    # the mean that DDP takes
    torch.testing.assert_close(torch.cat(gradients, dim=1) / RANKS, leaf.grad, rtol=1e-12, atol=1e-12)


def run_cross_view(rank, query, key):
    mine_query, mine_key = query.chunk(RANKS)[rank].requires_grad_(), key.chunk(RANKS)[rank].requires_grad_()
    loss = cross_view_nce(mine_query, mine_key, 0.2, world())
    loss.backward()
    return loss.detach(), mine_query.grad, mine_key.grad


def test_cross_view_nce_of_two_ranks_is_that_of_one_process(two_ranks):
    query, key = random(6, 4), random(6, 4, seed=1)
    leaves = query.clone().requires_grad_(), key.clone().requires_grad_()
    loss = cross_view_nce(*leaves, 0.2)
    loss.backward()
    losses, *gradients = zip(*two_ranks.run(run_cross_view, query, key), strict=True)
    torch.testing.assert_close(torch.stack(losses).mean(), loss.detach(), rtol=1e-12, atol=1e-12)
    for leaf, parts in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(torch.cat(parts) / RANKS, leaf.grad, rtol=1e-12, atol=1e-12)
