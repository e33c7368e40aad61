"""DeepCluster v2 by hand: clusters at the start of an epoch, targets and memory by the image's index."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from test_plain_loop import IMAGES, STEPS, batches, build, images
from torch import nn

from selfsup.checkpoint import read_checkpoint
from selfsup.engine.training import train
from selfsup.errors import UserError
from selfsup.functional import deepcluster_loss, spherical_lloyd
from selfsup.methods import DeepClusterV2, Method
from selfsup.random import fold_in

TINY = [
    "augment.counts=[2,2]",
    "method.prototypes=[6,9,4]",
    "method.hidden_dim=16",
    "method.output_dim=8",
    "method.kmeans_iterations=3",
]


def test_one_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("deepcluster_v2"))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)

    views = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    features = [twin.backbone(torch.cat([v.image for v in views[begin : begin + 2]])) for begin in (0, 2)]
    z = nn.functional.normalize(twin.head(torch.cat(features)))
    rows = torch.tensor([twin.memory.index.tolist().index(i) for i in batch.index.tolist()])
    scores, targets = [], []
    for number, k in enumerate((6, 9, 4)):
        points = twin.memory.values[number % 2]
        generator = torch.Generator().manual_seed(fold_in(fold_in(method.seed, 0), number))
        start = points[torch.randperm(len(points), generator=generator)[:k]]
        centroids, assignment = spherical_lloyd(points, start, 3)
        torch.testing.assert_close(method.prototypes[number].weight, centroids)
        scores.append((z @ centroids.T).unflatten(0, (4, -1)))
        targets.append(assignment[rows])
    torch.testing.assert_close(loss, deepcluster_loss(scores, torch.stack(targets), 0.1))

    expected = twin.memory.values.clone()
    expected[:, rows] = z.detach().unflatten(0, (4, -1))[:2]
    torch.testing.assert_close(method.memory.values, expected)


def test_clusters_are_made_once_an_epoch_from_what_the_epoch_before_has_kept(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, batch = prepared(tiny_config("deepcluster_v2"))
    method.training_step(batch, 0)
    prototypes, assignment = method.prototypes[1].weight.clone(), method.assignment.clone()
    method.training_step(batch, 1)
    assert torch.equal(method.prototypes[1].weight, prototypes)
    assert torch.equal(method.assignment, assignment)
    kept = method.memory.values[1].clone()
    monkeypatch.setattr(Method, "current_epoch", property(lambda self: 1))
    method.training_step(batch, 0)
    generator = torch.Generator().manual_seed(fold_in(fold_in(method.seed, 1), 1))
    start = kept[torch.randperm(len(kept), generator=generator)[:9]]
    centroids, assigned = spherical_lloyd(kept, start, 3)
    torch.testing.assert_close(method.prototypes[1].weight, centroids)
    assert torch.equal(method.assignment[1], assigned)
    assert int(method.clustered) == 1


def test_a_training_begins_with_a_pass_that_fills_the_memory(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images but the rest of the epoch are in it, as the network saw them, before the first clusters are made."""
    seen: list[Any] = []
    original = DeepClusterV2.step

    def step(self: Any, views: Any, batch: Any) -> Any:
        if not seen:
            weights = [p.clone() for p in self.parameters()]
            seen.append((self.memory.values.clone(), weights, batch, views))
        return original(self, views, batch)

    monkeypatch.setattr(DeepClusterV2, "step", step)
    config = tiny_config("deepcluster_v2", "trainer.max_epochs=1")
    fresh, first = prepared(config)
    random = fresh.memory.values.clone()
    run = train(config)
    values, weights, batch, views = seen[0]
    for ours, begun in zip(weights, fresh.parameters(), strict=True):
        assert torch.equal(ours, begun)  # nothing was learnt meanwhile
    changed = (values != random).any(-1).all(0)
    assert int(changed.sum()) == 64 == len(first.index) * 4
    assert torch.equal(first.index, batch.index)
    z = nn.functional.normalize(fresh.head(fresh.encode(views[:2]).flatten(0, 1)), dim=1).unflatten(0, (2, -1))
    torch.testing.assert_close(values[:, fresh.memory.rows(first.index)], z)
    assert int(read_checkpoint(run)["state_dict"]["clustered"]) == 0


def test_prototypes_never_learn(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("deepcluster_v2"))
    method.training_step(batch, 0).backward()
    for prototypes in method.prototypes:
        assert prototypes.weight.grad is None
        assert not prototypes.weight.requires_grad
        torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(len(prototypes.weight)))


def test_the_order_of_the_images_changes_no_target() -> None:
    """Whether an image comes first or last in an epoch, on this rank or another, its cluster is its own."""
    results = []
    for order in (torch.arange(IMAGES), torch.arange(IMAGES).flip(0)):
        method = build("deepcluster_v2")
        method.eval()  # BatchNorm's sums have an order, too
        batch = batches()[0]
        loss = method(batch.image[order], batch.index[order])
        results.append((float(loss.detach()), method.memory.values))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-5)


def test_in_a_loop_of_ones_own_images_and_index_are_asked_for() -> None:
    method = build("deepcluster_v2")
    with pytest.raises(UserError, match=r"DeepClusterV2 keeps something of each image; give index=…\."):
        method(images(IMAGES))
    with pytest.raises(UserError, match=r"let the loader give \(images, labels, index\)"):
        method.training_step(images(IMAGES), 0)
    method.fill(batches())
    assert method(images(IMAGES), torch.arange(IMAGES)).isfinite()
    with pytest.raises(ValueError, match=f"built for {IMAGES * STEPS} images, and 1000 is no index"):
        method(images(IMAGES), torch.arange(1000, 1000 + IMAGES))
    without = type(method)(build("byol").backbone, image_size=32, views=method.views, prototypes=[4], hidden_dim=16)
    with pytest.raises(UserError, match="build it with images=…"):
        without(images(IMAGES), torch.arange(IMAGES))


def test_what_cannot_be_is_refused(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("deepcluster_v2", "method.prototypes=[4,100]"))
    for work in (lambda: method.training_step(batch, 0), lambda: method.fill([batch])):
        with pytest.raises(UserError, match=r"method\.prototypes=\[4, 100\] asks for more clusters than .* \(\d+\)"):
            work()
    with pytest.raises(UserError, match=r"let augment\.counts begin with 2"):
        prepared(tiny_config("deepcluster_v2", "augment.counts=[1,3]"))


def test_defaults_are_the_authors(tiny_config: Callable[..., Any]) -> None:
    defaults = type(tiny_config("deepcluster_v2").method)()
    assert defaults.prototypes == [3000, 3000, 3000]
    assert (defaults.temperature, defaults.kmeans_iterations) == (0.1, 10)
    assert (defaults.hidden_dim, defaults.output_dim) == (2048, 128)
