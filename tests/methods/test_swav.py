"""SwAV by hand: codes, prototypes and the queue, and what goes wrong with them elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import nn

from selfsup.config import load_config
from selfsup.errors import UserError
from selfsup.functional import sinkhorn, swapped_prediction

TINY = [
    "augment.counts=[2,2]",
    "method.prototypes=24",
    "method.hidden_dim=16",
    "method.output_dim=8",
    "method.queue_size=40",
    "method.queue_start_epoch=0",
]
RANKS = [
    ["method.queue_size=0"],
    ["method.queue_size=16", "method.freeze_prototypes_epochs=0"],
    ["method.queue_size=17", "method.freeze_prototypes_epochs=0"],  # shares of the queue differ by one
]

unit = nn.functional.normalize


def embeddings(twin: Any, batch: Any) -> list[torch.Tensor]:
    """Embeddings of four views: a pass of the backbone for each size, one of the head for all."""
    views = twin.views(batch.image, seed=twin_seed(twin), index=batch.index)
    features = [twin.backbone(torch.cat([v.image for v in views[i : i + 2]])) for i in (0, 2)]
    return list(unit(twin.head(torch.cat(features)), dim=1).chunk(4))


def test_one_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("swav"))
    with torch.no_grad():
        method.prototypes.weight.mul_(1.7)  # as an optimiser might leave them
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    z = embeddings(twin, batch)
    twin.prototypes.normalize_()
    scores = [x @ twin.prototypes.weight.T for x in z]
    expected = swapped_prediction(scores, [sinkhorn(scores[0].detach()), sinkhorn(scores[1].detach())], 0.1)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_codes_come_from_the_queue_and_the_batch_once_the_queue_is_full(tiny_config: Callable[..., Any]) -> None:
    """40 slots and 16 images a step: nothing stored is read in the first three steps, all of it in the fourth."""
    method, batch = prepared(tiny_config("swav"))
    for step in range(4):
        twin = copy.deepcopy(method)
        loss = method.training_step(batch, 0)
        z = [x.detach() for x in embeddings(twin, batch)]
        with torch.no_grad():
            method.prototypes.weight.add_(
                0.1 * torch.randn_like(method.prototypes.weight)
            )  # next step: other prototypes
            twin.prototypes.normalize_()
        weight = twin.prototypes.weight.detach()
        codes = []
        for number in range(2):
            rows = z[number] if step < 3 else torch.cat([z[number], twin.queues[number].keys])
            assert len(rows) == (16 if step < 3 else 56)  # a batch is never in it twice
            codes.append(sinkhorn(rows @ weight.T)[:16])
        torch.testing.assert_close(loss.detach(), swapped_prediction([x @ weight.T for x in z], codes, 0.1))
        for number in range(2):
            slots = (torch.arange(16) + 16 * step) % 40
            torch.testing.assert_close(method.queues[number].keys[slots], z[number])
        assert not torch.allclose(method.queues[0].keys[slots], method.queues[1].keys[slots])
        assert int(method.stored) == 16 * (step + 1)


def test_random_slots_never_enter_the_codes(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("swav"))
    twin = copy.deepcopy(method)
    twin.trainer = method.trainer
    for queue in twin.queues:
        queue.keys.fill_(float("nan"))
    for number in range(3):
        assert torch.equal(method.training_step(batch, number), twin.training_step(batch, number))
    assert all(queue.keys.isfinite().all() for queue in twin.queues)


def test_the_queue_starts_late(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("swav", "method.queue_start_epoch=1"))
    before = method.queues[0].keys.clone()
    method.training_step(batch, 0)
    assert int(method.stored) == 0
    assert torch.equal(method.queues[0].keys, before)
    method.trainer.fit_loop.epoch_progress.current.completed = 1
    assert method.current_epoch == 1
    method.training_step(batch, 0)
    assert int(method.stored) == 16


def test_frozen_prototypes_keep_their_place(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("swav", "method.freeze_prototypes_epochs=1"))
    method.prototypes.normalize_()
    start = method.prototypes.weight.detach().clone()
    optimizer = torch.optim.AdamW(method.parameters(), 0.1, weight_decay=0.1)
    for epoch, number in ((0, 0), (0, 1), (1, 2)):
        method.trainer.fit_loop.epoch_progress.current.completed = epoch
        optimizer.zero_grad()
        method.training_step(batch, number).backward()
        method.on_after_backward()
        head = method.head[0].weight.detach().clone()
        optimizer.step()
        assert not torch.equal(method.head[0].weight, head)
        moved = (method.prototypes.weight.detach() - start).abs().max()
        assert moved > 0.01 if epoch else moved < 1e-6


def test_local_views_are_predicted_from_and_never_assigned(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import selfsup.methods.swav as module

    calls: list[tuple[int, ...]] = []

    def watch(scores: torch.Tensor, *args: Any) -> torch.Tensor:
        assert not scores.requires_grad
        calls.append(tuple(scores.shape))
        return sinkhorn(scores, *args)

    monkeypatch.setattr(module, "sinkhorn", watch)
    method, batch = prepared(tiny_config("swav", "augment.counts=[2,3]", "method.queue_size=0"))
    passes: list[tuple[int, ...]] = []
    method.backbone.register_forward_hook(lambda module, args, out: passes.append(tuple(args[0].shape)))
    method.training_step(batch, 0)
    assert calls == [(16, 24)] * 2
    assert passes == [(32, 3, 32, 32), (48, 3, 14, 14)]


def test_no_queue(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("swav", "method.queue_size=0"))
    for number in range(2):
        method.training_step(batch, number)
    assert not [name for name, _ in method.named_buffers() if name.startswith("queues")]


def test_defaults_are_the_papers() -> None:
    config = load_config(["method=swav"])
    method = config.method
    assert (method.temperature, method.epsilon, method.sinkhorn_iterations) == (0.1, 0.05, 3)
    assert (method.prototypes, method.queue_size, method.queue_start_epoch) == (3000, 3840, 15)
    assert (config.augment.recipe, config.augment.counts) == ("swav", [2, 6])
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.exclude_1d) == ("lars", 0.6, False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.queue_size=15", "method.queue_size=15 is smaller than batch_size=16"),
        ("method.epsilon=0", "method.epsilon"),
        ("method.sinkhorn_iterations=0", "method.sinkhorn_iterations"),
        ("augment.counts=[1,2]", "augment.counts"),
        ("augment.counts=[1]", "augment.counts"),
    ],
)
def test_mistakes_are_named(override: str, message: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message):
        tiny_method("swav", override)
