"""What every registered method keeps: it builds from its defaults, trains, moves all it should and nothing else."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import nn

from selfsup.config import from_values, load_config, to_yaml
from selfsup.data import TrainLoader, load_splits
from selfsup.engine.training import build_method
from selfsup.functional import info_nce, nt_xent
from selfsup.methods import Method
from selfsup.nn import SplitBatchNorm2d
from selfsup.registry import methods


def prepared(config: Any) -> tuple[Method, Any]:
    """Return a method attached to a trainer that has not begun, and its first batch."""
    pl.seed_everything(config.seed, verbose=False)
    splits = load_splits(config.data)
    method = build_method(config, splits)
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    trainer.strategy.connect(method)
    method.trainer = trainer
    method.log = lambda *_, **__: None  # type: ignore[method-assign]
    return method, next(iter(TrainLoader(splits.pretrain, config.batch_size, config.seed)))


@pytest.mark.parametrize("name", list(methods))
def test_builds_from_its_default_configuration(name: str) -> None:
    """The paper's defaults build at the default size; only the network is made small, for time."""
    config = load_config([f"method={name}", "backbone=resnet_tiny", "data.train_size=400", "data.test_size=1"])
    assert config.method == methods[name].config()
    method, _ = prepared(config)
    assert sum(p.requires_grad for p in method.parameters()) > 0
    assert methods[name].summary.endswith(".")


@pytest.mark.parametrize("name", list(methods))
def test_yaml_round_trip(name: str, tiny_config: Callable[..., Any]) -> None:
    config = tiny_config(name, "augment.override={scale: [0.5, 1.0]}", "optimizer.kwargs={nesterov: true}")
    again = from_values(OmegaConf.to_container(OmegaConf.create(to_yaml(config))))
    assert again == config
    assert from_values(dataclasses.asdict(config)) == config


@pytest.mark.parametrize("name", list(methods))
def test_every_trainable_parameter_gets_a_gradient_and_no_other(name: str, tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config(name))
    method.training_step(batch, 0).backward()
    for parameter_name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert bool(parameter.grad.ne(0).any()), parameter_name
        else:
            assert parameter.grad is None, parameter_name


@pytest.mark.parametrize("name", list(methods))
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_loss_in_float32(
    name: str, precision: torch.dtype, tiny_config: Callable[..., Any]
) -> None:
    method, batch = prepared(tiny_config(name))
    with torch.autocast("cpu", dtype=precision):
        loss = method.training_step(batch, 0)
    assert loss.dtype == torch.float32
    assert bool(loss.isfinite())


def test_simclr_step_is_nt_xent_of_both_views(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("simclr"))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    first, second = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    z1, z2 = twin.head(twin.backbone(torch.cat([first.image, second.image]))).chunk(2)
    torch.testing.assert_close(loss, nt_xent(z1, z2, 0.1))


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


def test_views_of_a_step_depend_on_seed_epoch_and_image_only(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("simclr"))
    seen: list[Any] = []
    original = method.views.forward

    def watch(images: Any, **kwargs: Any) -> Any:
        seen.append((images, kwargs, original(images, **kwargs)))
        return seen[-1][2]

    method.views.forward = watch  # type: ignore[method-assign]
    method.training_step(batch, 0)
    method.training_step(batch, 3)  # another place in the epoch: the same views
    assert torch.equal(seen[0][2][0].image, seen[1][2][0].image)
    assert not torch.equal(seen[0][2][0].image, seen[0][2][1].image)


def twin_seed(method: Method) -> int:
    from selfsup.augment import fold_in

    return fold_in(method.seed, method.current_epoch)
