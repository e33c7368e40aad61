"""A memory that two processes fill is that of one, and so are the clusters that the next epoch makes of it."""

from __future__ import annotations

import types
from typing import Any

import pytorch_lightning as pl
import torch
from gloo import Ranks
from test_training import share_batch_norm
from tiny import TINY, TINY_METHOD

from selfsup.config import load_config
from selfsup.data import Share, TrainLoader, load_splits
from selfsup.engine.training import build_method


def two_epochs(rank: int, world_size: int) -> dict[str, Any]:
    """Fill the memory, then take a step in each of two epochs without learning."""
    config = load_config(["method=deepcluster_v2", *TINY_METHOD["deepcluster_v2"], *TINY])
    pl.seed_everything(config.seed, verbose=False)
    splits = load_splits(config.data)
    method = build_method(config, splits, world_size)
    share_batch_norm(method)
    method = method.double()
    trainer = types.SimpleNamespace(
        world_size=world_size, global_rank=rank, current_epoch=0, global_step=0, barebones=False
    )
    method.trainer = trainer  # type: ignore[assignment]
    method.log = lambda *_, **__: None  # type: ignore[method-assign]
    batches = list(TrainLoader(splits.pretrain, config.batch_size, config.seed, Share(rank, world_size)))
    method.fill(batches)
    losses = []
    for trainer.current_epoch in (0, 1):
        losses.append(method.training_step(batches[trainer.current_epoch], 0).detach())
    weights = [prototypes.weight for prototypes in method.prototypes]
    return {
        "losses": torch.stack(losses),
        "assignment": method.assignment,
        "values": method.memory.values,
        "weights": weights,
    }


def test_two_processes_keep_and_cluster_what_one_does(two_ranks: Ranks) -> None:
    one = two_epochs(0, 1)
    two = two_ranks.run(two_epochs, 2)
    torch.testing.assert_close(
        torch.stack([rank["losses"] for rank in two]).mean(0), one["losses"], rtol=1e-9, atol=1e-9
    )
    for rank in two:
        assert torch.equal(rank["assignment"], one["assignment"])
        for part in ("values", "weights"):
            torch.testing.assert_close(rank[part], one[part], rtol=1e-9, atol=1e-9)
