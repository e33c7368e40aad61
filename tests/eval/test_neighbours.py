import faiss
import pytest
import torch

from selfsup.errors import UserError
from selfsup.eval import neighbours, search
from selfsup.eval.neighbours import INDEXES, recall_of, search_others


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_loop(bank, queries, k, leave_self_out=False):
    """Sort every cosine in Python; of equal ones the lower position comes first."""
    unit = torch.nn.functional.normalize
    table = (unit(queries.double(), dim=1) @ unit(bank.double(), dim=1).T).round(decimals=9).tolist()
    positions = []
    for q, row in enumerate(table):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))
        positions.append([i for i in order if not (leave_self_out and i == q)][:k])
    return positions, [[table[q][i] for i in found] for q, found in enumerate(positions)]


def memory_for(rows, dim):
    """Budget in MB that holds so many normalised rows of exact search."""
    return rows * 4 * dim / 1e6 + 1e-9


@pytest.mark.parametrize(("bank_size", "queries", "dim", "k"), [(40, 7, 5, 3), (50, 30, 16, 50), (1, 2, 3, 1)])
def test_search_is_a_sort_of_every_cosine(bank_size, queries, dim, k):
    bank, query = 7 * random(bank_size, dim, seed=0), random(queries, dim, seed=1)
    similarity, position = search(bank, query, k)
    for q in range(queries):
        cosines = [torch.cosine_similarity(query[q].double(), row.double(), dim=0).item() for row in bank]
        order = sorted(range(bank_size), key=lambda i: -cosines[i])[:k]
        assert position[q].tolist() == order
        assert similarity[q].tolist() == pytest.approx([cosines[i] for i in order], abs=1e-6)
    assert similarity.dtype == torch.float32
    assert position.dtype == torch.int64


def test_the_length_of_a_row_does_not_matter():
    bank, query = random(30, 6, seed=0), random(5, 6, seed=1)
    scaled = bank * torch.linspace(0.1, 9, 30)[:, None]
    assert torch.equal(search(bank, query, 4)[1], search(scaled, 3 * query, 4)[1])


def test_equal_neighbours_are_in_the_order_of_their_position():
    bank = torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0], [0, 1]])
    similarity, position = search(bank, torch.tensor([[0.0, 1], [1, 0]]), 5)
    assert position.tolist() == [[1, 4, 0, 2, 3], [0, 2, 3, 1, 4]]
    assert similarity.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("k", [1, 2, 6, 13, 39, 40])
def test_blocks_and_equal_neighbours_at_the_cut_are_the_one_sort(rows, k):
    # few directions, so that every cut goes through equal neighbours
    bank = torch.eye(4)[torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(k))]
    queries = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 2], [3, 4, 0, 0]])
    similarity, position = search(bank, queries, k, memory_mb=memory_for(rows, 4))
    expected, cosines = by_loop(bank, queries, k)
    assert position.tolist() == expected
    assert similarity.flatten().tolist() == pytest.approx([s for row in cosines for s in row], abs=1e-6)


def test_blocks_of_bank_and_queries_are_one_search(monkeypatch):
    bank, queries = random(301, 8, seed=0), random(50, 8, seed=1)
    sizes = []
    index = neighbours._index

    def noted(rows, *others):
        sizes.append(len(rows))
        return index(rows, *others)

    monkeypatch.setattr(neighbours, "_index", noted)
    monkeypatch.setattr(neighbours, "QUERIES_AT_ONCE", 16)
    similarity, position = search(bank, queries, 120, memory_mb=memory_for(100, 8))
    assert sizes == [100, 100, 100, 1]
    expected, cosines = by_loop(bank, queries, 120)
    assert position.tolist() == expected
    assert similarity.flatten().tolist() == pytest.approx([s for row in cosines for s in row], abs=1e-6)


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("memory_mb", [0.003, 1])
def test_every_index_finds_most_of_the_true_neighbours(index, memory_mb):
    bank, queries = random(400, 6, seed=0), random(30, 6, seed=1)
    similarity, position = search(bank, queries, 10, index=index, effort=4, memory_mb=memory_mb)
    expected, _ = by_loop(bank, queries, 10)
    shared = [len(set(a) & set(b)) for a, b in zip(position.tolist(), expected, strict=True)]
    assert sum(shared) >= 0.8 * 300
    assert all(len(set(row)) == 10 for row in position.tolist())
    assert (similarity.diff(dim=1) <= 0).all()
    cosine = torch.cosine_similarity(queries[:, None], bank[position], dim=2)
    torch.testing.assert_close(similarity, cosine, atol=2e-3, rtol=0)


def test_recall_is_the_share_of_the_true_neighbours():
    bank, queries = random(2000, 8, seed=0), random(40, 8, seed=1)
    for index in INDEXES:
        position = search(bank, queries, 20, index=index)[1].tolist()
        expected, _ = by_loop(bank, queries, 20)
        shared = sum(len(set(a) & set(b)) for a, b in zip(position, expected, strict=True))
        recall = recall_of(torch.tensor(position), bank, queries, [20, 1])
        assert recall[20] == pytest.approx(shared / 800, abs=2e-3), index
        assert recall[1] == pytest.approx(sum(a[0] == b[0] for a, b in zip(position, expected, strict=True)) / 40)
        if index == "ivf":  # so that the share says something
            assert 0.1 < recall[20] < 0.95


@pytest.mark.parametrize("index", ["flat", "ivf"])
def test_recall_among_the_others(index):
    features = random(300, 5, seed=0)
    position = search_others(features, 7, index=index)[1]
    expected, _ = by_loop(features, features, 7, leave_self_out=True)
    shared = sum(len(set(a) & set(b)) for a, b in zip(position.tolist(), expected, strict=True))
    assert recall_of(position, features, features, [7], others=True)[7] == pytest.approx(shared / 2100)
    assert shared == 2100 if index == "flat" else shared < 2100


def test_recall_does_not_ask_which_of_the_equal_neighbours_was_found():
    found = torch.tensor([[50, 3, 40, 12, 9]] * 3)
    assert recall_of(found, torch.ones(60, 4), torch.ones(3, 4), [5]) == {5: 1.0}


def test_lists_that_hold_too_few_are_filled_up():
    # two tight groups, far apart: the list nearest to a query holds half of the bank at most
    bank = torch.cat([random(100, 4, seed=0) / 50 + torch.eye(4)[0], random(100, 4, seed=1) / 50 - torch.eye(4)[0]])
    similarity, position = search(bank, bank[:3], 150, index="ivf")
    expected, _ = by_loop(bank, bank[:3], 150)
    assert [set(row) for row in position.tolist()] == [set(row) for row in expected]
    assert torch.isfinite(similarity).all()


@pytest.mark.parametrize("k", [1, 4, 11])
def test_other_rows_leave_out_the_row_itself_and_not_its_copies(k):
    features = random(12, 3, seed=0)
    features[5] = features[2]
    similarity, position = search_others(features, k)
    expected, cosines = by_loop(features, features, k, leave_self_out=True)
    assert position.tolist() == expected
    assert similarity.flatten().tolist() == pytest.approx([s for row in cosines for s in row], abs=1e-6)


def test_a_row_with_many_copies_is_not_its_own_neighbour():
    _, position = search_others(torch.ones(9, 2), 3)
    assert position.tolist() == [[i for i in range(9) if i != row][:3] for row in range(9)]


@pytest.mark.parametrize("index", ["flat", "ivf", "half"])
def test_shards_over_devices_are_one_search(index, monkeypatch):
    # without a GPU the copies stay on the CPU; how rows are split and positions counted is the same
    used = []

    def copy(resources, device, source, options):
        used.append(device)
        return faiss.clone_index(source)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 3)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: None)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", copy)
    bank, queries = random(500, 8, seed=0), random(25, 8, seed=1)
    similarity, position = search(bank, queries, 12, index=index, effort=15)
    expected, cosines = by_loop(bank, queries, 12)
    assert used == [0, 1, 2]
    shared = sum(len(set(a) & set(b)) for a, b in zip(position.tolist(), expected, strict=True))
    assert shared == 300 if index == "flat" else shared > 290
    if index == "flat":
        assert position.tolist() == expected
        assert similarity.flatten().tolist() == pytest.approx([s for row in cosines for s in row], abs=1e-6)


@pytest.mark.parametrize("k", [0, 4])
def test_k_has_to_fit_the_bank(k):
    with pytest.raises(ValueError, match="bank of 3"):
        search(torch.eye(3), torch.eye(3), k)
    with pytest.raises(ValueError, match="other rows of a set of"):
        search_others(torch.eye(max(k, 1)), max(k, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"index": "ivff"}, "eval.index: there is no 'ivff'"),
        ({"effort": 0}, "eval.index_effort is 0"),
        ({"memory_mb": -1}, "eval.search_memory_mb is -1"),
    ],
)
def test_settings_a_person_can_put_right(settings, message):
    with pytest.raises(UserError, match=message):
        search(torch.eye(3), torch.eye(3), 1, **settings)
