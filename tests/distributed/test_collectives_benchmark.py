"""What two processes send is what the formulas of benchmarks/scaling.py say."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from gloo import Ranks
from tiny import tiny

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
RANKS = 2
BATCH, DIM = 16, 128  # of TINY and of SimCLR's head


@pytest.fixture
def collectives(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import collectives

    yield collectives
    for name in ("collectives", "scaling", "measure"):
        sys.modules.pop(name, None)


def settings_of(name: str, overrides: list[str]) -> list[str]:
    return [*tiny(name), *overrides]


def send(rank: int, name: str, overrides: list[str]) -> list[tuple[str, str, int, bool]]:
    """Take two steps in a process of its own and return what the second sent."""
    if BENCHMARKS not in sys.path:
        sys.path.insert(0, BENCHMARKS)
    from collectives import train

    from selfsup.config import load_config

    steps = train(rank, RANKS, load_config(settings_of(name, overrides)))
    next(steps)
    return [(m.purpose, m.kind, m.size, m.backward) for m in next(steps).sent]


def test_simclr_sends_both_views_embeddings_each_way_and_its_gradients(two_ranks: Ranks) -> None:
    for sent in two_ranks.run(send, "simclr", []):
        embeddings = 2 * (BATCH // RANKS) * DIM * 4
        loss = [message for message in sent if message[0] == "loss"]
        assert loss == [("loss", "all_gather", embeddings, False), ("loss", "reduce_scatter", embeddings, True)]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("simclr", []),
        ("moco", ["method.bn_groups=2", "method.symmetric=true"]),
        ("densecl", ["method.bn_groups=2"]),
        ("swav", []),  # with its queue
        ("barlow_twins", []),  # 8 dimensions, 16 images: sums
        ("barlow_twins", ["method.output_dim=16"]),
        ("vicreg", ["method.output_dim=7"]),
        ("vicreg", []),
        ("byol", []),
        ("wmse", ["method.subbatch_size=16", "augment.counts=[3]"]),
        ("supcon", []),
        ("dino", ["method.head_batch_norm=true"]),
        ("pixpro", ["method.instance_weight=1"]),
    ],
)
def test_messages_are_those_of_the_formulas(
    name: str, overrides: list[str], two_ranks: Ranks, collectives: Any
) -> None:
    config, method = collectives.build(settings_of(name, overrides))
    expected = collectives.messages(config, method, BATCH // RANKS, RANKS)
    assert any(message.purpose == "gradients" and message.size > 0 for message in expected)
    for rank in two_ranks.run(send, name, overrides):
        sent = [collectives.Message(*message) for message in rank]
        assert collectives.total(sent) == Counter(expected)


def test_the_functions_are_left_as_they_were(collectives: Any) -> None:
    before = {name: getattr(collectives.dist, name) for name in collectives.WRAPPED}
    with collectives.Recorder().recording():
        assert collectives.dist.all_reduce is not before["all_reduce"]
    with pytest.raises(KeyError), collectives.Recorder().recording():
        raise KeyError
    assert {name: getattr(collectives.dist, name) for name in collectives.WRAPPED} == before
