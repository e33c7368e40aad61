import pytest
import torch
import torch.nn.functional as F

from selfsup.functional import info_nce
from selfsup.nn import FeatureQueue


def batch(count, dim=3, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_starts_with_random_unit_vectors_at_position_zero():
    torch.manual_seed(0)
    queue = FeatureQueue(50, 4)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(50))
    assert queue.pointer.item() == 0
    assert queue.pointer.dtype == torch.int64
    assert len(queue.keys.unique(dim=0)) == 50
    assert not list(queue.parameters())


@pytest.mark.parametrize("size", [1, 5, 8, 12])
@pytest.mark.parametrize("counts", [[1] * 15, [4] * 5, [3, 3, 3, 3, 3], [5, 1, 4, 2, 5], [7, 7], [0, 3, 0]])
def test_is_a_ring_at_any_batch_size(size, counts):
    counts = [min(count, size) for count in counts]
    queue = FeatureQueue(size, 3)
    ring, position = list(queue.keys.clone()), 0
    for step, count in enumerate(counts):
        keys = 4 * batch(count, seed=step)
        queue.enqueue(keys)
        for key in keys:
            ring[position] = key / key.norm()
            position = (position + 1) % size
        torch.testing.assert_close(queue.keys, torch.stack(ring))
        assert queue.pointer.item() == position


def test_a_full_queue_holds_the_latest_keys():
    queue = FeatureQueue(6, 3)
    stream = batch(17)
    for part in stream.split([4, 5, 3, 5]):
        queue.enqueue(part)
    latest = F.normalize(stream[-6:], dim=1)
    torch.testing.assert_close(queue.keys.roll(-int(queue.pointer), 0), latest)


def test_negatives_are_a_copy_so_the_backward_pass_may_follow_the_enqueue():
    queue = FeatureQueue(6, 3)
    query = batch(2, seed=1).requires_grad_()
    before = queue.keys.clone()
    negatives = queue.negatives()
    loss = info_nce(query, batch(2, seed=2), negatives, 0.2)
    queue.enqueue(batch(6, seed=3))
    torch.testing.assert_close(negatives, before, rtol=0, atol=0)
    assert not torch.equal(queue.keys, before)
    loss.backward()
    late = query.grad.clone()
    query.grad = None
    info_nce(query, batch(2, seed=2), before, 0.2).backward()
    assert torch.equal(late, query.grad)


def test_keys_carry_no_gradient_and_half_keys_are_stored_in_float32():
    queue = FeatureQueue(4, 3)
    keys = batch(2).bfloat16().requires_grad_()
    queue.enqueue(keys)
    assert not queue.keys.requires_grad
    assert queue.keys.dtype == torch.float32
    torch.testing.assert_close(queue.keys[:2], F.normalize(keys.detach().float(), dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-30, 1e-39, 1e30, 3e38])
@pytest.mark.parametrize("store", [torch.float32, torch.bfloat16])
def test_keys_of_any_size_are_stored_with_length_one(dtype, scale, store):
    """In float32 the square of 1e30 is infinite, and that of 1e-30 is 0."""
    queue = FeatureQueue(4, 3).to(store)
    keys = (batch(2).double() / batch(2).abs().max() * scale).to(dtype)
    assert keys.any(dim=1).all()
    queue.enqueue(keys)
    lengths = keys.double().norm(dim=1, keepdim=True)
    torch.testing.assert_close(queue.keys[:2], (keys.double() / lengths).to(store))


def test_a_key_of_zeros_stays_one():
    queue = FeatureQueue(4, 3)
    queue.enqueue(torch.zeros(2, 3))
    assert not queue.keys[:2].any()
    assert queue.keys[2:].any()


def test_state_dict_restores_keys_and_pointer(tmp_path):
    queue = FeatureQueue(7, 3)
    queue.enqueue(batch(5))
    queue.enqueue(batch(5, seed=1))
    torch.save(queue.state_dict(), tmp_path / "queue.pt")
    restored = FeatureQueue(7, 3)
    restored.load_state_dict(torch.load(tmp_path / "queue.pt"))
    assert restored.pointer.item() == 3
    assert torch.equal(restored.keys, queue.keys)
    for one in (queue, restored):
        one.enqueue(batch(6, seed=2))
    assert torch.equal(restored.keys, queue.keys)
    assert torch.equal(restored.pointer, queue.pointer)


def test_refuses_more_keys_than_it_holds_and_stays_as_it_was():
    queue = FeatureQueue(4, 3)
    before = queue.keys.clone()
    with pytest.raises(ValueError, match="4 keys cannot take 5"):
        queue.enqueue(batch(5))
    assert torch.equal(queue.keys, before)
    assert queue.pointer.item() == 0
