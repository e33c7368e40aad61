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
from tiny import TINY_METHOD, network_of, written

from selfsup.config import from_values, load_config, to_yaml
from selfsup.data import TrainLoader, load_splits
from selfsup.engine.training import build_method
from selfsup.functional import nt_xent
from selfsup.methods import Method
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


def test_what_tests_say_of_methods_is_of_methods() -> None:
    """A misspelt file name would be ignored."""
    assert {*written("TINY"), *written("RANKS"), *written("ZERO_LAST")} <= {*methods}


@pytest.mark.parametrize("name", list(methods))
def test_builds_from_its_default_configuration(name: str) -> None:
    """The paper's defaults build at the default size; only the network is made small, for time."""
    network = network_of(name) or ["backbone=resnet_tiny"]
    # what a method cannot be without, and has no default
    needed = [word for word in TINY_METHOD.get(name, []) if word.startswith("method.teacher=")]
    config = load_config([f"method={name}", *needed, *network, "data.train_size=400", "data.test_size=1"])
    assert config.method == methods[name].config(**dict(word.split(".", 1)[1].split("=") for word in needed))
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
