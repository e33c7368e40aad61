"""Scores of saliency maps against loops, closed forms and maps that are right, wrong or ignorant by construction."""

import pytest
import torch

from selfsup.functional.faithfulness import infidelity, information_area, max_sensitivity, separation


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_infidelity_is_the_loop():
    changes, predicted = random(7, 3), random(7, 3, seed=1) + 0.3
    raw, share = infidelity(changes, predicted)
    for b in range(3):
        d, p = changes[:, b].tolist(), predicted[:, b].tolist()
        beta = max(0.0, sum(x * y for x, y in zip(d, p, strict=True)) / sum(y * y for y in p))
        expected = sum((beta * y - x) ** 2 for x, y in zip(d, p, strict=True)) / 7
        assert raw[b].item() == pytest.approx(expected, rel=1e-12)
        assert share[b].item() == pytest.approx(expected / (sum(x * x for x in d) / 7), rel=1e-12)


def test_infidelity_of_the_truth_of_its_opposite_and_of_nothing():
    changes = random(9, 2)
    assert infidelity(changes, 3 * changes)[1].max() < 1e-20
    torch.testing.assert_close(infidelity(changes, -changes)[1], torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(infidelity(changes, 0 * changes)[1], torch.ones(2, dtype=torch.float64))
    assert infidelity(0 * changes, changes)[1].max() == 0


def test_sensitivity_of_linear_and_constant_maps():
    images = random(2, 1, 4, 4)
    generator = torch.Generator().manual_seed(0)
    assert max_sensitivity(lambda x: torch.ones(2, 4, 4), images, torch.ones(2, 4, 4), 0.1, 3).max() == 0
    found = max_sensitivity(lambda x: x[:, 0], images, images[:, 0], 0.1, 5, generator)
    expected = torch.zeros(2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        noise = ((torch.rand(2, 1, 4, 4, generator=generator) * 2 - 1).double() * 0.1)[:, 0]
        expected = torch.maximum(expected, noise.flatten(1).norm(dim=1) / images[:, 0].flatten(1).norm(dim=1))
    torch.testing.assert_close(found, expected)
    # the draws fill the box: their length is at most r √n, and near r √(n / 3)
    bound = 0.1 * 4 / images.flatten(1).norm(dim=1)
    assert (found <= bound).all()
    assert (found > 0.4 * bound).all()


def test_area_under_the_curve():
    # all the response with the first information, none before the last, and the diagonal
    at = torch.tensor([[0.25], [0.5], [0.75]], dtype=torch.float64)
    assert information_area(at, torch.ones(3, 1).double()).item() == pytest.approx(0.125 + 0.75)
    assert information_area(at, torch.zeros(3, 1).double()).item() == pytest.approx(0.125)
    assert information_area(at, at).item() == pytest.approx(0.5)
    # a response that falls is kept, and the order of the points does not matter
    dented = torch.tensor([[0.6], [0.1], [0.8]], dtype=torch.float64)
    filled = torch.tensor([[0.6], [0.6], [0.8]], dtype=torch.float64)
    expected = information_area(at, filled)
    assert torch.equal(information_area(at, dented), expected)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(information_area(at[order], dented[order]), expected)
    assert expected.item() == pytest.approx(0.25 * (0.3 + 0.6 + 0.7 + 0.9))
    with pytest.raises(ValueError, match="response must be from 0 to 1"):
        information_area(at, at + 1)


def test_separation_is_the_share_of_pairs():
    maps = torch.randint(0, 4, (3, 3, 4), generator=torch.Generator().manual_seed(0)).double()
    inside = torch.rand(3, 3, 4, generator=torch.Generator().manual_seed(1)) < 0.4
    for b, found in enumerate(separation(maps, inside).tolist()):
        first, second = maps[b][inside[b]].tolist(), maps[b][~inside[b]].tolist()
        expected = sum((x > y) + 0.5 * (x == y) for x in first for y in second) / (len(first) * len(second))
        assert found == pytest.approx(expected, rel=1e-12)
    assert separation(inside.double(), inside).tolist() == [1.0] * 3
    assert separation(torch.zeros(3, 3, 4), inside).tolist() == [0.5] * 3
    assert separation(maps, torch.zeros_like(inside)).isnan().all()
    with pytest.raises(ValueError, match="inside must be bool"):
        separation(maps, maps)
