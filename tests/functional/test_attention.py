"""Attention and Fourier measures against loops and closed forms."""

import math

import pytest
import torch
from sklearn.metrics import mutual_info_score

from selfsup.functional.attention import (
    attention_distance,
    attention_iou,
    attention_nmi,
    commonest_offset,
    fourier_log_amplitude,
    patch_attention,
)


def random_attention(batch, heads, tokens):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, heads, tokens, tokens, generator=generator, dtype=torch.float64).pow(4).softmax(3)


def uniform(tokens):
    return torch.full((1, 1, tokens, tokens), 1 / tokens, dtype=torch.float64)


def identity(tokens):
    return torch.eye(tokens, dtype=torch.float64)[None, None]


def test_distance_is_the_loop():
    attention = random_attention(2, 3, 9)
    for b in range(2):
        for h in range(3):
            total = 0.0
            for q in range(9):
                for k in range(9):
                    apart = math.hypot(q // 3 - k // 3, q % 3 - k % 3)
                    total += attention[b, h, q, k].item() * 4 * apart / 9
            assert attention_distance(attention, 4)[b, h].item() == pytest.approx(total, rel=1e-12)


def test_distance_in_closed_form():
    assert attention_distance(identity(16), 8).item() == 0
    # of the 16 pairs on a 2 × 2 grid 4 are equal, 8 are one apart and 4 lie across
    assert attention_distance(uniform(4), 16).item() == pytest.approx(16 * (8 + 4 * math.sqrt(2)) / 16, rel=1e-12)
    # every query looks one to its right, the last of a row to the first
    shifted = torch.zeros(9, 9, dtype=torch.float64)
    shifted[torch.arange(9), torch.arange(9) // 3 * 3 + (torch.arange(9) + 1) % 3] = 1
    assert attention_distance(shifted[None, None]).item() == pytest.approx((1 + 1 + 2) / 3, rel=1e-12)
    with pytest.raises(ValueError, match="square grid"):
        attention_distance(uniform(5))


def test_nmi_in_closed_form():
    assert attention_nmi(uniform(9)).item() == pytest.approx(0, abs=1e-12)
    assert attention_nmi(identity(9)).item() == pytest.approx(1, abs=1e-12)
    assert attention_nmi(identity(9).flip(3)).item() == pytest.approx(1, abs=1e-12)
    same_rows = random_attention(1, 1, 9)[:, :, :1].expand(-1, -1, 9, -1)
    assert attention_nmi(same_rows).item() == pytest.approx(0, abs=1e-12)
    one_key = torch.zeros(1, 1, 4, 4)
    one_key[..., 2] = 1
    assert attention_nmi(one_key).item() == 0
    # two halves of the queries that look at a half of the keys each: log 2 / log 4
    halves = torch.block_diag(torch.full((2, 2), 0.5), torch.full((2, 2), 0.5))[None, None].double()
    assert attention_nmi(halves).item() == pytest.approx(0.5, abs=1e-12)


def test_nmi_is_that_of_counted_pairs():
    counts = torch.tensor([[4, 1, 3], [0, 6, 2], [5, 2, 1]])  # eight keys a query
    queries = [q for q in range(3) for k in range(3) for _ in range(counts[q, k])]
    keys = [k for q in range(3) for k in range(3) for _ in range(counts[q, k])]
    shares = [sum(key == k for key in keys) / 24 for k in range(3)]
    entropies = math.log(3), -sum(p * math.log(p) for p in shares)
    expected = mutual_info_score(queries, keys) / math.sqrt(entropies[0] * entropies[1])
    assert attention_nmi(counts.double()[None, None] / 8).item() == pytest.approx(expected, rel=1e-10)


def test_prefix_tokens_are_left_out():
    attention = random_attention(1, 2, 6)
    patches = patch_attention(attention, 2)
    for q in range(4):
        row = attention[0, 1, q + 2, 2:]
        torch.testing.assert_close(patches[0, 1, q], row / row.sum())
    only_class = torch.zeros(1, 1, 3, 3)
    only_class[..., 0] = 1
    assert patch_attention(only_class, 1).tolist() == [[[[0.5, 0.5], [0.5, 0.5]]]]


@pytest.mark.parametrize("side", [4, 5, 6])
def test_amplitude_is_the_sum_over_pixels(side):
    maps = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = fourier_log_amplitude(maps)
    assert found.shape == (2, side // 2 + 1)
    for b in range(2):
        for f in range(side // 2 + 1):
            total = 0.0
            for d in range(3):
                sums = [0j, 0j]
                for y in range(side):
                    for x in range(side):
                        value = maps[b, d, y, x].item()
                        angle = -2 * math.pi * f * (x + y) / side
                        sums[0] += value
                        sums[1] += value * complex(math.cos(angle), math.sin(angle))
                total += (math.log(abs(sums[1])) - math.log(abs(sums[0]))) / 3
            assert found[b, f].item() == pytest.approx(total, abs=1e-9)


def test_amplitude_of_constant_and_checkerboard():
    board = (1 - 2 * ((torch.arange(6)[:, None] + torch.arange(6)) % 2)).double()
    mixed = fourier_log_amplitude((3 + 0.5 * board)[None, None])
    assert mixed[0, 0].item() == 0
    assert mixed[0, 3].item() == pytest.approx(math.log(0.5 / 3), rel=1e-12)
    assert (mixed[0, 1:3] < -30).all(), "nothing between"
    constant = fourier_log_amplitude(torch.full((1, 2, 6, 6), 4.0, dtype=torch.float64))
    assert constant[0, 0].item() == 0
    assert (constant[0, 1:] < -30).all()
    assert fourier_log_amplitude(board[None, None])[0, 3] > 30
    assert torch.isfinite(fourier_log_amplitude(torch.zeros(1, 1, 4, 4))).all()
    with pytest.raises(ValueError, match=r"B,D,S,S"):
        fourier_log_amplitude(torch.zeros(1, 1, 4, 5))


def test_heads_that_look_one_step_aside():
    place = torch.arange(9).view(3, 3)
    right = torch.stack([place[:, 1], place[:, 2], place[:, 2]], 1).flatten()  # the last column looks at itself
    self_, random = torch.arange(9), torch.randint(0, 9, (4, 9), generator=torch.Generator().manual_seed(0))
    key = torch.stack([torch.stack([right, self_, row]) for row in random])
    offset, share = commonest_offset(key)
    assert offset[:2].tolist() == [[0, 1], [0, 0]]
    assert share[:2].tolist() == pytest.approx([6 / 9, 1])
    counts = {}
    for row in random.tolist():
        for q, k in enumerate(row):
            step = (k // 3 - q // 3, k % 3 - q % 3)
            counts[step] = counts.get(step, 0) + 1
    assert share[2].item() == pytest.approx(max(counts.values()) / 36)
    assert counts[tuple(offset[2].tolist())] == max(counts.values())
    with pytest.raises(ValueError, match="key must be from 0 to 8"):
        commonest_offset(key + 1)
    with pytest.raises(ValueError, match="no square grid"):
        commonest_offset(key[:, :, :5].clamp_max(4))


def test_attention_to_objects_is_the_loop():
    attention = random_attention(3, 2, 9)[:, :, 0]
    inside = torch.rand(3, 9, generator=torch.Generator().manual_seed(1)) < 0.4
    inside[2] = False
    found = attention_iou(attention, inside, 0.6)
    for b in range(2):
        for h in range(2):
            taken, held = set(), 0.0
            for patch in sorted(range(9), key=lambda p: -attention[b, h, p].item()):
                if held >= 0.6 * attention[b, h].sum().item():
                    break
                taken.add(patch)
                held += attention[b, h, patch].item()
            own = set(inside[b].nonzero().flatten().tolist())
            assert found[b, h].item() == pytest.approx(len(taken & own) / len(taken | own))
    assert found[2].isnan().all()
    # all on the object, evenly: the whole mass takes all of it
    even = inside[:1, None].double() / inside[0].sum()
    assert attention_iou(even, inside[:1], 1.0).item() == 1
    with pytest.raises(ValueError, match="mass must be a number above 0 and at most 1"):
        attention_iou(attention, inside, 1.5)
