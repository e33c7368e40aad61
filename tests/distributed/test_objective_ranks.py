"""Two processes with an objective are one, and so is what it keeps of every image."""

from __future__ import annotations

import pytest
from gloo import Ranks
from test_training import assert_ranks_equal_one

MIXED = ["negatives=mochi", "negatives.hardest=20", "negatives.pairs=5", "negatives.with_query=3"]
CASES = [
    *(("simclr", [f"objective={name}"]) for name in ("dclw", "hard_negatives", "kernel_infonce", "macl", "sogclr")),
    *(
        ("simclr", [f"objective={name}", "augment.counts=[3]"])
        for name in ("cacr", "poly_view", "mv_infonce", "mv_dhel")
    ),
    *(("simclr", [f"objective={name}"]) for name in ("align_uniform", "isogclr")),
    ("simclr", ["objective=multi_positive", "objective.labels=true", "objective.anchors=first"]),
    ("simclr", ["objective=decoupled_uniformity", "objective.prior=labels"]),
    ("supcon", ["objective=dcl"]),
    ("moco", ["method.bn_groups=2", "objective=macl"]),
    ("moco", ["method.bn_groups=2", "objective=align_uniform"]),
    ("moco", ["method.bn_groups=2", "objective=dclw", *MIXED, "negatives.wait_epochs=0"]),
    ("moco", ["method.bn_groups=2", "method.symmetric=true", "negatives=feature_transformation"]),
]


@pytest.mark.parametrize(("method", "words"), CASES)
def test_two_processes_equal_one(method: str, words: list[str], two_ranks: Ranks) -> None:
    assert_ranks_equal_one(two_ranks, method, words)
