"""What an objective keeps of every image, and what changes negatives at random, go on bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from states import assert_same_state
from test_resume import stop_after

from selfsup.checkpoint import read_checkpoint
from selfsup.data import load_splits
from selfsup.engine.stop import Interrupted
from selfsup.engine.training import load_resumed_config, train
from selfsup.errors import UserError

MIXED = ["negatives=mochi", "negatives.hardest=20", "negatives.pairs=5", "negatives.with_query=3"]


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("simclr", ["objective=sogclr"]),
        ("simclr", ["objective=isogclr"]),
        ("moco", ["objective=macl", *MIXED, "negatives.wait_epochs=1"]),
        ("moco", ["negatives=feature_transformation"]),
    ],
)
def test_resumed_equals_uninterrupted(
    method: str, words: list[str], tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny_config(method, *words, run="whole"))
    for steps in (2, 4, 6):
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            with pytest.raises(Interrupted) as stopped:
                train(tiny_config(method, *words, run=f"parts{steps}"))
        parts = stopped.value.checkpoint.parent.parent
        train(load_resumed_config([f"resume={parts}"]))
        assert_same_state(whole, parts)


def test_temperatures_of_all_images_lie_in_the_checkpoint(tiny_config: Callable[..., Any]) -> None:
    config = tiny_config("simclr", "objective=isogclr")
    run = train(config)
    kept = read_checkpoint(run)["state_dict"]["objective.memory.values"]
    assert kept.shape == (3, len(load_splits(config.data).pretrain))
    assert bool(kept.isfinite().all(1)[1:].all())
    assert len(torch.unique(kept[1])) > 10
    assert (run / "metrics.csv").read_text().splitlines()[0].count("train/temperature") == 1
    with pytest.raises(UserError, match=r"objective.name=sogclr does not change the objective"):
        train(load_resumed_config([f"resume={run}", "objective.name=sogclr", "trainer.max_epochs=3"]))
