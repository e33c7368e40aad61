"""MoCo v2: queue, keys, momentum and BatchNorm groups, a step at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import nn

from selfsup.data import load_splits
from selfsup.engine.training import build_method
from selfsup.functional import info_nce
from selfsup.nn import SplitBatchNorm2d

TINY = ["method.queue_size=48", "method.bn_groups=4"]
RANKS = [
    ["method.bn_groups=2"],
    ["method.bn_groups=4", "method.symmetric=true"],
    ["method.bn_groups=2", "method.queue_size=37"],  # wraps in the middle of a batch
]


def test_moco_reads_contrasts_then_enqueues(tiny_config: Callable[..., Any]) -> None:
    """One step by hand: keys from shuffled company, the loss against the old queue, then the keys at the pointer."""
    method, batch = prepared(tiny_config("moco"))
    twin = copy.deepcopy(method)
    old = method.queue.negatives()
    loss = method.training_step(batch, 0)

    first, second = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    query = twin.head(twin.backbone(first.image))
    order = method.batch_permutation(len(batch.index))
    with torch.no_grad():
        key = torch.empty_like(query)
        key[order] = twin.key_encoder.module(second.image[order])
    torch.testing.assert_close(loss, info_nce(query, key, old, 0.2))
    count = len(key)
    torch.testing.assert_close(method.queue.keys[:count], nn.functional.normalize(key))
    assert torch.equal(method.queue.keys[count:], old[count:])
    assert int(method.queue.pointer) == count

    # a loss that saw its own keys among the negatives would change when they are not enqueued
    twin.trainer, twin.queue.enqueue = method.trainer, lambda keys: None
    assert torch.equal(twin.training_step(batch, 0), loss)


def test_moco_key_encoder_follows_after_the_optimiser_step(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("moco", "method.momentum=0.75"))
    before = [p.clone() for p in method.key_encoder.parameters()]
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.5)
    method.training_step(batch, 0).backward()
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(method.key_encoder.parameters(), before, strict=True))
    method.after_optimizer_step()
    online = [*method.backbone.parameters(), *method.head.parameters()]
    for key, old, query in zip(method.key_encoder.parameters(), before, online, strict=True):
        torch.testing.assert_close(key, 0.75 * old + 0.25 * query)


def test_symmetric_moco_averages_both_directions_and_enqueues_both_keys(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("moco", "method.symmetric=true"))
    method.training_step(batch, 0)
    assert int(method.queue.pointer) == 2 * len(batch.index)


@pytest.mark.parametrize(("world_size", "parts"), [(1, 4), (2, 2), (4, 0), (8, 0)])
def test_moco_batch_norm_groups_are_shared_out_over_ranks(
    world_size: int, parts: int, tiny_config: Callable[..., Any]
) -> None:
    config = tiny_config("moco")
    method = build_method(config, load_splits(config.data), world_size)
    splits = {m.splits for m in method.backbone.modules() if isinstance(m, SplitBatchNorm2d)}
    assert splits == ({parts} if parts else set())
    key_splits = {m.splits for m in method.key_encoder.modules() if isinstance(m, SplitBatchNorm2d)}
    assert key_splits == splits
