"""Barlow Twins, VICReg, VIbCReg over ranks: gathered embeddings and summed products are one process, to rounding."""

from itertools import pairwise

import pytest
import torch
from gloo import Ranks

from selfsup.distributed import world
from selfsup.functional import barlow_twins_loss, vibcreg_loss, vicreg_loss
from selfsup.functional.collectives import sum_over
from selfsup.functional.redundancy import sums_send_less

LOSSES = {"barlow_twins": barlow_twins_loss, "vicreg": vicreg_loss, "vibcreg": vibcreg_loss}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run_loss(rank, name, z, ranks):
    """The loss of a rank's images, and what DDP's mean makes of the gradients of all."""
    leaves = [view.chunk(ranks)[rank].clone().requires_grad_() for view in z]
    loss = LOSSES[name](*leaves, group=world())
    loss.backward()
    return loss.detach(), torch.stack([leaf.grad for leaf in leaves]) / ranks


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory):
    ranks = Ranks(3, tmp_path_factory.mktemp("three"))
    yield ranks
    ranks.stop()


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("dim", [1, 4, 5, 8, 9, 20])  # of 9 images: sums below 9 (4.5 in VICReg), gathers above
def test_three_ranks_are_one_process_in_value_and_gradient(name, dim, three_ranks):
    z = torch.stack([0.5 * random(9, dim) + 3, 2 * random(9, dim, seed=1) - 1])
    whole = z.clone().requires_grad_()
    expected = LOSSES[name](*whole)
    expected.backward()
    found = three_ranks.run(run_loss, name, z, 3)
    losses = torch.stack([loss for loss, _ in found])
    torch.testing.assert_close(losses.mean(), expected.detach(), rtol=1e-12, atol=1e-12)
    gradient = torch.cat([part for _, part in found], dim=1)
    torch.testing.assert_close(gradient, whole.grad, rtol=1e-10, atol=1e-12)


def run_sum(rank, x, weights):
    local = x[rank].clone().requires_grad_()
    total = sum_over(local.T, world())  # with strides of its own
    (total * weights[rank]).sum().backward()
    return total.detach(), local.grad


def test_a_sum_is_that_of_all_and_its_gradient_what_all_ask(two_ranks):
    x, weights = random(2, 3, 4), random(2, 4, 3, seed=1)
    for total, gradient in two_ranks.run(run_sum, x, weights):
        torch.testing.assert_close(total, x.sum(0).T, rtol=1e-15, atol=1e-15)
        torch.testing.assert_close(gradient, weights.sum(0).T, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("matrices", [1, 2])
def test_the_rule_is_what_a_ring_sends(matrices):
    for images in (1, 3, 64):
        for ranks in (2, 3, 8):
            for dim in (1, 2, 6, 9, 24, 100, 255, 256, 512, 513):
                gathered = (ranks - 1) * 2 * images * dim
                summed = 2 * (ranks - 1) / ranks * matrices * dim**2
                assert sums_send_less(images, ranks, dim, matrices) == (summed < gathered)
    assert not sums_send_less(64, 1, 2, matrices)
    chosen = [sums_send_less(8, 4, dim, matrices) for dim in range(1, 70)]
    assert all(a >= b for a, b in pairwise(chosen))
