"""ReSSL's loss against a plain loop over floats, closed forms and invariances."""

import math

import pytest
import torch

from selfsup.functional import info_nce, ressl_loss


def softmax(logits):
    top = max(logits)
    total = math.fsum(math.exp(x - top) for x in logits)
    return [math.exp(x - top) / total for x in logits]


def loop(query, key, anchors, query_temperature, key_temperature):
    """Value and the query's gradient, one image and one anchor at a time."""
    total, rows = 0.0, []
    for q_row, k_row in zip(query.tolist(), key.tolist(), strict=True):
        q_length, k_length = math.hypot(*q_row), math.hypot(*k_row)
        q, k = [x / q_length for x in q_row], [x / k_length for x in k_row]
        q_scores, k_scores = (
            [math.fsum(x * y for x, y in zip(side, a, strict=True)) for a in anchors.tolist()] for side in (q, k)
        )
        said = softmax([s / query_temperature for s in q_scores])
        wanted = softmax([s / key_temperature for s in k_scores])
        total -= math.fsum(w * math.log(p) for w, p in zip(wanted, said, strict=True))
        to_unit = [
            math.fsum(
                (p - w) / query_temperature * a[d] for p, w, a in zip(said, wanted, anchors.tolist(), strict=True)
            )
            for d in range(len(q))
        ]
        along = math.fsum(g * x for g, x in zip(to_unit, q, strict=True))
        rows.append([(g - along * x) / q_length / len(query) for g, x in zip(to_unit, q, strict=True)])
    return total / len(query), torch.tensor(rows, dtype=torch.float64)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("count", "stored", "dim"), [(1, 1, 2), (3, 7, 4), (5, 2, 3), (6, 40, 8)])
@pytest.mark.parametrize("temperatures", [(0.1, 0.04), (0.5, 0.2), (0.2, 0.7)])
def test_value_and_gradient_are_the_loop_s(count, stored, dim, temperatures):
    query, key, anchors = random(count, dim), random(count, dim, seed=1), random(stored, dim, seed=2)
    leaves = [x.clone().requires_grad_() for x in (query, key, anchors)]
    loss = ressl_loss(*leaves, *temperatures)
    loss.backward()
    value, gradient = loop(query, key, anchors, *temperatures)
    assert loss.item() == pytest.approx(value, rel=1e-11, abs=1e-13)
    torch.testing.assert_close(leaves[0].grad, gradient, rtol=1e-10, atol=1e-12)
    assert leaves[1].grad is None  # the target and what is stored are constants
    assert leaves[2].grad is None


def test_defaults_are_the_authors():
    query, key, anchors = random(4, 3), random(4, 3, seed=1), random(9, 3, seed=2)
    assert torch.equal(ressl_loss(query, key, anchors), ressl_loss(query, key, anchors, 0.1, 0.04))
    assert not torch.equal(ressl_loss(query, key, anchors), ressl_loss(query, key, anchors, 0.04, 0.1))


def test_a_query_that_is_its_key_costs_the_entropy_and_is_at_rest():
    key, anchors = random(4, 5), random(11, 5, seed=2)
    query = (3 * key).requires_grad_()
    loss = ressl_loss(query, key, anchors, 0.2, 0.2)
    loss.backward()
    target = [softmax([s / 0.2 for s in row]) for row in (key / key.norm(dim=1, keepdim=True) @ anchors.T).tolist()]
    entropy = -math.fsum(p * math.log(p) for row in target for p in row) / 4
    assert loss.item() == pytest.approx(entropy, rel=1e-12)
    assert query.grad.abs().max() < 1e-12


def test_equal_similarities_cost_the_logarithm_of_the_number_of_anchors():
    query, anchors = torch.eye(4, 6, dtype=torch.float64), torch.zeros(13, 6, dtype=torch.float64)
    assert ressl_loss(query, query, anchors).item() == pytest.approx(math.log(13))


def test_a_sharp_target_is_infonce_with_the_nearest_anchor_as_the_key():
    """As the key's temperature goes to 0 the target is one anchor, and the others are negatives."""
    query, key = random(1, 4), random(1, 4, seed=1)
    anchors = torch.nn.functional.normalize(random(6, 4, seed=2), dim=1)
    nearest = int((anchors @ key[0]).argmax())
    others = torch.cat([anchors[:nearest], anchors[nearest + 1 :]])
    expected = info_nce(query, anchors[nearest : nearest + 1], others, 0.1)
    torch.testing.assert_close(ressl_loss(query, key, anchors, 0.1, 1e-4), expected)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(half):
    query, key, anchors = random(6, 8).to(half), random(6, 8, seed=1).to(half), random(9, 8, seed=2).to(half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ressl_loss(query, key, anchors)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss.double(), ressl_loss(query.double(), key.double(), anchors.double()), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("bad", [{"query_temperature": 0.0}, {"key_temperature": -1.0}])
def test_a_temperature_that_cannot_be_is_named(bad):
    with pytest.raises(ValueError, match=f"ressl_loss: {next(iter(bad))} must be a number above 0"):
        ressl_loss(random(2, 3), random(2, 3), random(2, 3), **bad)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"ressl_loss: key \[N,D\] has the shape \[3, 3\]"):
        ressl_loss(random(2, 3), random(3, 3), random(2, 3))
    with pytest.raises(ValueError, match="ressl_loss: anchors is empty"):
        ressl_loss(random(2, 3), random(2, 3), random(0, 3))
