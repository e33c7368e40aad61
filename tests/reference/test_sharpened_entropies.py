"""TWIST against a loop over floats, closed forms and invariances."""

import math

import pytest
import torch
from slopes import slopes

from selfsup.functional import twist_loss


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def softmax(row, temperature=1.0):
    exponentials = [math.exp(x / temperature) for x in row]
    return [e / math.fsum(exponentials) for e in exponentials]


def entropy(shares):
    return -math.fsum(p * math.log(p) for p in shares)


def loop(logits1, logits2, temperature, weight):
    rows = [logits1.tolist(), logits2.tolist()]
    count, total = len(rows[0]), 0.0
    for a, b in zip(*rows, strict=True):
        p, q = softmax(a), softmax(b)
        total += math.fsum(x * math.log(x / y) + y * math.log(y / x) for x, y in zip(p, q, strict=True)) / 2 / count
    for view in rows:
        sharp = [softmax(row, temperature) for row in view]
        total += math.fsum(entropy(row) for row in sharp) / count / 2
        total -= weight * entropy([math.fsum(column) / count for column in zip(*sharp, strict=True)]) / 2
    return total


@pytest.mark.parametrize(("count", "classes"), [(1, 3), (5, 4), (4, 7)])
@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 1.0), (0.5, 2.0)])
def test_twist_is_the_loop_in_value_and_gradient(count, classes, temperature, weight):
    tensors = random(count, classes), 2 * random(count, classes, seed=1)
    leaves = [t.clone().requires_grad_() for t in tensors]
    loss = twist_loss(*leaves, temperature, weight)
    loss.backward()
    assert loss.item() == pytest.approx(loop(*tensors, temperature, weight), rel=1e-10, abs=1e-12)
    for leaf, slope in zip(leaves, slopes(lambda a, b: loop(a, b, temperature, weight), *tensors), strict=True):
        torch.testing.assert_close(leaf.grad, slope, rtol=1e-6, atol=1e-8)
    single = twist_loss(*(t.float() for t in tensors), temperature, weight)
    assert single.item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)


def test_gradcheck():
    assert torch.autograd.gradcheck(twist_loss, (random(4, 3).requires_grad_(), random(4, 3, seed=1).requires_grad_()))


def test_sharp_even_and_equal_is_least_and_one_distribution_for_all_is_zero():
    sure = 200 * torch.eye(5, dtype=torch.float64)
    assert twist_loss(sure, sure).item() == pytest.approx(-math.log(5), rel=1e-12)
    same = random(1, 5).expand(8, 5)
    assert twist_loss(same, same).item() == pytest.approx(0, abs=1e-12)
    one_class = sure[:1].expand(8, 5)
    assert twist_loss(one_class, one_class).item() == pytest.approx(0, abs=1e-12)
    # sure, even, and never the same class: all of the 200 that separate the logits
    assert twist_loss(sure, sure.roll(1, 0)).item() == pytest.approx(200 - math.log(5), rel=1e-9)


def test_order_of_images_views_and_classes_and_a_shift_of_logits_do_not_matter():
    one, other = random(6, 4), random(6, 4, seed=1)
    value, order = twist_loss(one, other), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(twist_loss(one[order], other[order]), value)
    torch.testing.assert_close(twist_loss(other, one), value)
    torch.testing.assert_close(twist_loss(one.roll(1, 1), other.roll(1, 1)), value)
    torch.testing.assert_close(twist_loss(one + random(6, 1), other - 3), value)
    assert abs(twist_loss(one[order], other) - value) > 1e-3


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_inputs_are_computed_in_float32_under_autocast(half):
    one, other = random(6, 4, dtype=half).requires_grad_(), random(6, 4, seed=1, dtype=half)
    with torch.autocast("cpu", dtype=half):
        loss = twist_loss(one, other)
    assert loss.dtype == torch.float32
    assert loss.item() == twist_loss(one.detach().float(), other.float()).item()
