"""Exact search by the matrix product: many equal rows, groups, cuts, blocks and few queries."""

import numpy as np
import pytest
import torch

from selfsup.eval import search
from selfsup.eval.exact import nearest_rows
from selfsup.eval.neighbours import search_others


def whole_numbers(*shape, seed, most=3):
    """Rows whose products are whole numbers, exact in float32, and so of many equals."""
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def sorted_products(rows, queries, k):
    """A stable sort of every product in float64: of equal ones the lower position comes first."""
    table = queries.double().numpy() @ rows.double().numpy().T
    order = np.argsort(-table, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(table, order, 1), order


def found(rows, queries, k, table_mb=1.0):
    parts = list(nearest_rows(rows, queries, k, table_mb))
    covered = [row for where, _, _ in parts for row in range(len(queries))[where]]
    assert covered == list(range(len(queries)))
    return torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts])


# below and above the size from which groups are used, whole groups and not, k = N, k of one
CASES = [(1, 1), (5, 5), (31, 7), (64, 64), (65, 1), (288, 9), (289, 9), (320, 9), (2000, 20), (4999, 3), (6000, 180)]


@pytest.mark.parametrize(("count", "k"), CASES)
@pytest.mark.parametrize("most", [1, 40])  # nearly all products equal others; few do
def test_it_is_a_stable_sort_of_every_product(count, k, most):
    rows, queries = whole_numbers(count, 6, seed=count, most=most), whole_numbers(70, 6, seed=1, most=most)
    value, position = found(rows, queries, k)
    products, order = sorted_products(rows, queries, k)
    assert (position.numpy() == order).all()
    assert (value.numpy() == products).all()


@pytest.mark.parametrize("queries", [1, 63, 64, 65, 127, 128, 129, 300])
def test_any_number_of_queries_and_any_budget_is_the_same(queries):
    rows, asked = whole_numbers(3000, 5, seed=0, most=9), whole_numbers(queries, 5, seed=1, most=9)
    order = sorted_products(rows, asked, 7)[1]
    for table_mb in (1e-9, 1.0, 1.6, 1000.0):  # 64, 82, 131 and all queries at once
        assert (found(rows, asked, 7, table_mb)[1].numpy() == order).all()


@pytest.mark.parametrize("order", ["rising", "falling", "in the last columns", "all in one group"])
def test_wherever_the_nearest_stand(order):
    count, k = 5000, 12
    value = torch.arange(count).float()
    if order == "falling":
        value = value.flip(0)
    if order == "in the last columns":
        value = torch.where(torch.arange(count) >= count - 30, 1e4 + value, 0.0)
    if order == "all in one group":
        value = torch.zeros(count)
        value[64:96] = torch.arange(32.0) // 2
    rows = torch.stack([value, torch.ones(count)], 1)
    queries = torch.tensor([[1.0, 0], [-1, 0], [2, 5]])
    assert (found(rows, queries, k)[1].numpy() == sorted_products(rows, queries, k)[1]).all()


def test_equals_on_both_sides_of_the_cut_and_none_beside_each_other():
    rows = torch.cat([torch.arange(3000.0)[:, None], torch.ones(3000, 1)], 1)
    queries = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, 2]])  # for the second and the last all rows are equal
    position = found(rows, queries, 5)[1]
    assert position.tolist() == [[2999, 2998, 2997, 2996, 2995], *3 * [[0, 1, 2, 3, 4]]]


@pytest.mark.parametrize("count", [1, 3, 40])  # of queries: a product of few would treat copies of a row unequally
@pytest.mark.parametrize("dim", [3, 100, 513])
def test_copies_of_a_row_are_equal_neighbours_wherever_they_stand(count, dim):
    generator = torch.Generator().manual_seed(dim)
    kinds = torch.randint(0, 7, (2003,), generator=generator)
    rows = torch.randn(7, dim, generator=generator)
    similarity, position = search(rows[kinds], torch.randn(count, dim, generator=generator), 2003)
    for near, at in zip(similarity, position, strict=True):
        for kind in range(7):
            mine = kinds[at] == kind
            assert near[mine].unique().numel() == 1
            assert (at[mine].diff() > 0).all()


@pytest.mark.parametrize("memory_mb", [0.3, 0.9, 64])
def test_blocks_of_the_bank_do_not_change_a_bit(memory_mb):
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(3000, 48, generator=generator).double()
    bank[1500:] = bank[torch.randint(0, 1500, (1500,), generator=generator)]  # copies in other blocks
    whole = search(bank, bank[:90], 11, memory_mb=1000)
    parts = search(bank, bank[:90], 11, memory_mb=memory_mb)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


def test_the_neighbours_of_a_set_in_itself_are_those_of_float64():
    features = torch.randn(2600, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = torch.nn.functional.normalize(features, dim=1)
    table = unit @ unit.T
    table.fill_diagonal_(-2)
    similarity, position = search_others(features, 15)
    torch.testing.assert_close(
        similarity.double(), table.sort(dim=1, descending=True).values[:, :15], atol=1e-6, rtol=0
    )
    torch.testing.assert_close(table.gather(1, position), similarity.double(), atol=1e-6, rtol=0)
