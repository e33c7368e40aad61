"""What a set of features refuses when it is made, and that directions survive any magnitude."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from selfsup.errors import UserError
from selfsup.eval import FeatureSet, knn, search
from selfsup.eval.features import unit_rows
from selfsup.eval.protocols.clustering import spherical_kmeans


@pytest.mark.parametrize(
    ("features", "labels", "word"),
    [
        (torch.ones(4), torch.zeros(4, dtype=torch.long), "features"),
        (torch.ones(4, 2, dtype=torch.long), torch.zeros(4, dtype=torch.long), "features"),
        ([[1.0]], torch.zeros(1, dtype=torch.long), "features"),
        (torch.ones(4, 2, device="meta"), torch.zeros(4, dtype=torch.long), "features"),
        (torch.eye(4).to_sparse(), torch.zeros(4, dtype=torch.long), "features"),
        (torch.ones(4, 2), torch.zeros(3, dtype=torch.long), "labels"),
        (torch.ones(4, 2), torch.tensor([0.5, 1, 2, 3]), "labels"),
        (torch.ones(4, 2), torch.tensor([True, False, True, False]), "labels"),
        (torch.ones(4, 2), [0, 1, 2, 3], "labels"),
    ],
)
def test_what_is_no_set_of_features_is_refused(features: Any, labels: Any, word: str) -> None:
    with pytest.raises(UserError, match=f"The {word} of"):
        FeatureSet(features, labels)


def test_directions_survive_where_float32_does_not_hold_the_squares() -> None:
    rows = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.normalize(rows, dim=1).float()
    torch.testing.assert_close(unit_rows(rows * 1e30), expected)
    assert torch.equal(unit_rows(rows), torch.nn.functional.normalize(rows.float(), dim=1))
    labels = torch.arange(8) % 2
    one, other = (FeatureSet(rows * scale, labels) for scale in (1.0, 1e30))
    assert knn(one, one, k=3) == knn(other, other, k=3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_search_refuses_what_has_no_place(bad: float) -> None:
    bank, spoilt = torch.eye(3), torch.eye(3)
    spoilt[1, 1] = bad
    for index in ("flat", "ivf", "hnsw", "half"):
        with pytest.raises(ValueError, match="bank"):
            search(spoilt, bank, 1, index=index)
        with pytest.raises(ValueError, match="queries"):
            search(bank, spoilt, 1, index=index)
    with pytest.raises(ValueError, match="k must be a whole number"):
        search(bank, bank, 1.5)  # type: ignore[arg-type]


def test_features_without_a_direction_make_no_clusters() -> None:
    with pytest.raises(ValueError, match="all zero"):
        spherical_kmeans(torch.zeros(5, 2), 2, progress=False)
