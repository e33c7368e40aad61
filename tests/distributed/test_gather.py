"""Two processes are one: values, gradients, the queue and the shuffle."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from selfsup.distributed import any_rank, world
from selfsup.functional import nt_xent
from selfsup.functional.collectives import gather, gather_together
from selfsup.nn import FeatureQueue, MomentumEncoder, shuffle, unshuffle

RANKS = 2


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts_of(x):
    return x.chunk(RANKS)


# gather


def run_gather(rank, x, weights):
    local = parts_of(x)[rank].requires_grad_()
    # a view with strides of its own, as a network hands it over
    everything = gather(local.transpose(0, -1).contiguous().transpose(0, -1), world())
    (everything * weights[rank]).sum().backward()
    return everything.detach(), local.grad


@pytest.mark.parametrize("shape", [(4,), (6, 3), (2, 3, 2)])
def test_gather_concatenates_in_rank_order_and_its_gradient_sums_what_all_ranks_ask(two_ranks, shape):
    x, weights = random(*shape), random(RANKS, *shape, seed=1)
    for rank, (everything, gradient) in enumerate(two_ranks.run(run_gather, x, weights)):
        assert torch.equal(everything, x)
        torch.testing.assert_close(gradient, parts_of(weights.sum(0))[rank], rtol=1e-14, atol=1e-14)


def run_gather_together(rank, x, weights):
    locals_ = [parts_of(part)[rank].requires_grad_() for part in x]
    calls = []
    originals = {name: getattr(dist, name) for name in ("all_gather", "reduce_scatter", "all_reduce")}
    for name, original in originals.items():
        setattr(dist, name, lambda *a, name=name, original=original, **k: (calls.append(name), original(*a, **k))[1])
    try:
        everything = gather_together(locals_, world())
        sum((e * w).sum() for e, w in zip(everything, weights[rank], strict=True)).backward()
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    return [e.detach().clone() for e in everything], [part.grad for part in locals_], calls


def test_tensors_gathered_together_are_those_gathered_alone_by_one_call_each_way(two_ranks):
    x, weights = random(3, 6, 2), random(RANKS, 3, 6, 2, seed=1)
    for rank, (everything, gradients, calls) in enumerate(two_ranks.run(run_gather_together, x, weights)):
        assert torch.equal(torch.stack(everything), x)
        for gradient, asked in zip(gradients, weights.sum(0), strict=True):
            torch.testing.assert_close(gradient, parts_of(asked)[rank], rtol=1e-14, atol=1e-14)
        assert calls == ["all_gather", "reduce_scatter"]


def test_gather_in_a_single_process_is_the_identity():
    x = random(3, 2)
    assert gather(x, None) is x
    assert gather_together([x, x], None)[1] is x
    assert world() is None


def run_any_rank(rank, flags):
    return any_rank(flags[rank], torch.device("cpu")), world() is dist.group.WORLD


@pytest.mark.parametrize("flags", [(False, False), (False, True), (True, False), (True, True)])
def test_a_flag_on_any_rank_is_a_flag_on_all(two_ranks, flags):
    assert two_ranks.run(run_any_rank, flags) == [(any(flags), True)] * RANKS


# NT-Xent


def embed(weight, x):
    return torch.tanh(x @ weight.T)


def run_nt_xent(rank, weight, x1, x2, temperature):
    weight = weight.clone().requires_grad_()
    local1, local2 = (parts_of(x)[rank].clone().requires_grad_() for x in (x1, x2))
    loss = nt_xent(embed(weight, local1), embed(weight, local2), temperature, group=world())
    loss.backward()
    return loss.detach(), weight.grad, local1.grad, local2.grad


@pytest.mark.parametrize(("local", "temperature"), [(1, 0.5), (2, 0.1), (3, 0.5), (5, 0.07)])
def test_nt_xent_over_two_ranks_is_the_single_process_loss_and_gradient(two_ranks, local, temperature):
    x1, x2 = random(RANKS * local, 6), random(RANKS * local, 6, seed=1)
    weight = random(4, 6, seed=2)
    leaves = [t.clone().requires_grad_() for t in (weight, x1, x2)]
    single = nt_xent(embed(leaves[0], leaves[1]), embed(leaves[0], leaves[2]), temperature)
    single.backward()

    losses, weight_gradients, gradients1, gradients2 = zip(
        *two_ranks.run(run_nt_xent, weight, x1, x2, temperature), strict=True
    )
    exact = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(torch.stack(losses).mean(), single.detach(), **exact)
    # the mean over ranks is what DDP takes
    torch.testing.assert_close(torch.stack(weight_gradients).mean(0), leaves[0].grad, **exact)
    torch.testing.assert_close(torch.cat(gradients1) / RANKS, leaves[1].grad, **exact)
    torch.testing.assert_close(torch.cat(gradients2) / RANKS, leaves[2].grad, **exact)
    assert not torch.allclose(*weight_gradients)


# queue


def run_queue(rank, start, batches):
    queue = FeatureQueue(*start.shape)
    queue.keys.copy_(start)
    for batch in batches:
        queue.enqueue(parts_of(batch)[rank])
    return queue.state_dict()


@pytest.mark.parametrize("counts", [[4], [4, 4, 4], [6, 2, 10, 8], [10, 10]])
def test_the_queue_is_the_same_on_both_ranks_and_that_of_the_whole_batch(two_ranks, counts):
    start = F.normalize(random(10, 3).float(), dim=1)
    batches = [random(count, 3, seed=step + 1).float() for step, count in enumerate(counts)]
    single = FeatureQueue(10, 3)
    single.keys.copy_(start)
    for batch in batches:
        single.enqueue(batch)
    for state in two_ranks.run(run_queue, start, batches):
        assert torch.equal(state["pointer"], single.pointer)
        torch.testing.assert_close(state["keys"], single.keys, rtol=1e-6, atol=1e-7)
    one, other = two_ranks.run(run_queue, start, batches)
    assert torch.equal(one["keys"], other["keys"])


def run_full_queue(rank, count):
    queue = FeatureQueue(4, 3)
    with pytest.raises(ValueError, match=f"4 keys cannot take {RANKS * count}"):
        queue.enqueue(torch.ones(count, 3))


def test_the_keys_of_all_ranks_have_to_fit(two_ranks):
    two_ranks.run(run_full_queue, 3)


# shuffle


def run_shuffle(rank, images, order):
    local = parts_of(images)[rank]
    company = shuffle(local, order, world())
    return company, unshuffle(company, order, world())


@pytest.mark.parametrize("order", [[1, 0], [0, 1], [4, 0, 2, 5, 1, 3], [5, 1, 6, 0, 4, 3, 7, 2]])
def test_unshuffle_undoes_shuffle_and_ranks_encode_each_others_images(two_ranks, order):
    order = torch.tensor(order)
    images = random(len(order), 2, 3)
    companies, restored = zip(*two_ranks.run(run_shuffle, images, order), strict=True)
    for rank in range(RANKS):
        assert torch.equal(companies[rank], parts_of(images[order])[rank])
        assert torch.equal(restored[rank], parts_of(images)[rank])
    assert torch.equal(torch.cat(companies), images[order])


def run_shuffled_encoder(rank, images, order):
    encoder = MomentumEncoder(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))).double()
    local = parts_of(images)[rank]
    keys = unshuffle(encoder(shuffle(local, order, world())), order, world())
    return keys, encoder(local), encoder.module[0](images)


def test_shuffled_keys_have_the_statistics_of_their_company(two_ranks):
    images, order = random(6, 3), torch.tensor([3, 0, 5, 1, 4, 2])  # rank 0 encodes 3, 0, 5
    for rank, (keys, unshuffled, hidden) in enumerate(two_ranks.run(run_shuffled_encoder, images, order)):
        normal = torch.empty_like(hidden)
        for company in ([3, 0, 5], [1, 4, 2]):
            members = hidden[company]
            normal[company] = (members - members.mean(0)) / (members.var(0, correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(keys, parts_of(normal)[rank])
        assert not torch.allclose(keys, unshuffled)
