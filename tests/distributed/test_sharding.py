"""FSDP: two processes that hold a part of each weight train what one process with the whole of it trains."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import Ranks
from test_lightning import assert_equal_but_for_statistics, run
from test_training import CASES, train_steps
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from selfsup.checkpoint import load_backbone, read_checkpoint
from selfsup.cli import main
from selfsup.data import load_splits
from selfsup.errors import UserError
from selfsup.optimization import OptimizerConfig, build_optimizer, decay_groups
from selfsup.sharding import SHARDABLE, check_shardable, shard
from selfsup.training import build_method, train

FSDP = ["trainer.devices=2", "trainer.strategy=fsdp"]
#: Layers whose first dimension is odd, or smaller than the number of ranks.
SHAPES = [(3, 5, 7), (1, 5, 3)]


def assert_equal_steps(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    torch.testing.assert_close(torch.stack([r["losses"] for r in two]).mean(0), one["losses"], rtol=1e-9, atol=1e-9)
    for rank in two:
        for part in ("gradients", "parameters"):
            assert rank[part].keys() == one[part].keys()
            for key, value in one[part].items():
                torch.testing.assert_close(rank[part][key], value, rtol=1e-7, atol=1e-9, msg=f"{part} {key}")


@pytest.mark.parametrize(("name", "overrides"), CASES)
def test_every_method_in_parts_equals_the_whole(name: str, overrides: list[str], two_ranks: Ranks) -> None:
    assert_equal_steps(
        train_steps(0, 1, name, overrides), two_ranks.run(train_steps, 2, name, overrides, True)
    )


@pytest.mark.parametrize(
    "settings",
    [
        ["backbone=resnet18", "backbone.name=vit_tiny_patch16_224", "backbone.kwargs={img_size: 32, embed_dim: 12, depth: 3, num_heads: 2}"],
        ["trainer.activation_checkpointing=true"],
        ["trainer.chunk_size=4", "trainer.activation_checkpointing=true"],
    ],
    ids=["repeated blocks", "checkpoints", "chunks"],
)
def test_blocks_and_recomputation(settings: list[str], two_ranks: Ranks) -> None:
    ...
