"""The counter-based generator against the published generator, and against what random numbers must look like."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from selfsup.random import _GOLDEN, _mix, _mix_int, _signed, fold_in, uniform

# First outputs of SplitMix64 seeded with 1234567, as published on Rosetta Code
PUBLISHED = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def test_mixers_give_the_published_numbers():
    states = [1234567 + k * _GOLDEN for k in range(1, 6)]
    assert [_mix_int(state) for state in states] == PUBLISHED
    tensor = _mix(torch.tensor([_signed(state % 2**64) for state in states]))
    assert [value % 2**64 for value in tensor.tolist()] == PUBLISHED


def test_numbers_are_uniform():
    numbers = uniform(3, torch.arange(5000), 4)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for column in numbers.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-3
    counts = torch.histc(numbers.flatten(), bins=256, min=0, max=1)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    # the lowest of the 53 bits are as random as the highest
    low = (numbers * 2**53).long() % 64
    assert stats.chisquare(np.bincount(low.flatten().numpy(), minlength=64)).pvalue > 1e-3


@pytest.mark.parametrize("relation", ["slots", "neighbouring images", "views", "epochs"])
def test_pairs_are_independent(relation):
    index = torch.arange(20000)
    first = uniform(fold_in(5, 0), index, 2)
    second = {
        "slots": first[:, 1],
        "neighbouring images": first[:, 0].roll(1),
        "views": uniform(fold_in(5, 1), index, 2)[:, 0],
        "epochs": uniform(fold_in(6, 0), index, 2)[:, 0],
    }[relation]
    table, _, _ = np.histogram2d(first[:, 0].numpy(), second.numpy(), bins=16, range=[[0, 1], [0, 1]])
    assert stats.chisquare(table.flatten()).pvalue > 1e-3


def test_one_bit_of_the_index_changes_half_of_the_bits():
    index = torch.arange(2000)
    base = (uniform(0, index, 1) * 2**53).long()
    for bit in (0, 1, 7, 31, 62):
        changed = (uniform(0, index ^ (1 << bit), 1) * 2**53).long() ^ base
        flipped = torch.stack([(changed >> place) & 1 for place in range(53)]).double().mean()
        assert abs(flipped - 0.5) < 0.01


def test_rows_depend_on_their_own_index_only():
    whole = uniform(9, torch.arange(100), 7)
    picked = torch.tensor([42, 3, 99])
    assert torch.equal(uniform(9, picked, 7), whole[picked])
    assert torch.equal(uniform(9, picked[:1], 3), whole[42:43, :3])


def test_fold_in_spreads_seeds():
    seeds = {fold_in(seed, value) for seed, value in itertools.product(range(-5, 100), range(100))}
    assert len(seeds) == 105 * 100
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert fold_in(fold_in(0, 1), 2) != fold_in(fold_in(0, 2), 1)
    assert stats.kstest(np.array(sorted(seeds)) / 2**63, "uniform").pvalue > 1e-3
