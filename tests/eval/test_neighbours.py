import pytest
import torch

from selfsup.eval import search


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("k", [0, 4])
def test_k_has_to_fit_the_bank(k):
    with pytest.raises(ValueError, match="bank of 3"):
        search(torch.eye(3), torch.eye(3), k)
