"""A method outside our trainer: in a loop of one's own, and under a plain ``pl.Trainer`` with anybody's loader."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from tiny import TINY_METHOD, network_of, tiny
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import selfsup.methods
from selfsup.augment import multi_crop, two_crop
from selfsup.config import load_config
from selfsup.errors import UserError
from selfsup.methods import DINO, BarlowTwins, MoCo, PixPro, SimCLR, SupCon
from selfsup.nn import BackboneConfig, build_backbone, wrap_backbone
from selfsup.optimization import OptimizerConfig, build_optimizer
from selfsup.registry import methods
from selfsup.types import Batch

STEPS, IMAGES = 3, 16
PLAIN = OptimizerConfig(name="momentum", lr=0.01, scaling="none", warmup_epochs=0, schedule="constant")


def network(channels: int = 3, method: str = "") -> nn.Module:
    torch.manual_seed(5)
    if network_of(method):
        return build_backbone(load_config(tiny(method)).backbone, channels, image_sizes=[32])
    return build_backbone(BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1], stem_stride=2), channels)


def images(count: int = IMAGES * STEPS, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, 32, 32), generator=generator, dtype=torch.uint8)


def build(name: str, **others: Any) -> selfsup.methods.Method:
    own = [word for word in TINY_METHOD.get(name, []) if word not in network_of(name)]
    words = OmegaConf.from_dotlist(own)
    settings = OmegaConf.to_container(words.get("method") or OmegaConf.create())
    multi = len(OmegaConf.select(words, "augment.counts", default=[])) > 1
    views = multi_crop(methods[name].choices["augment"], (32, 16), (2, 2)) if multi else None
    if "teacher" in settings:
        settings["teacher"] = selfsup.open_network(settings["teacher"]).network
    torch.manual_seed(3)
    return methods[name].target(
        network(method=name),
        name=name,
        image_size=32,
        views=views,
        batch_size=IMAGES,
        seed=7,
        total_steps=STEPS,
        images=IMAGES * STEPS,
        **settings,
        **others,
    )


def batches() -> list[Batch]:
    labels = torch.arange(IMAGES * STEPS) % 4
    index = torch.arange(IMAGES * STEPS)
    return [
        Batch(*parts) for parts in zip(images().split(IMAGES), labels.split(IMAGES), index.split(IMAGES), strict=True)
    ]


def trainer(**settings: Any) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


@pytest.mark.parametrize("name", list(methods))
def test_a_loop_of_ones_own_trains_what_a_trainer_does(name: str) -> None:
    ours = build(name, optimizer=PLAIN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer().fit(ours, DataLoader(batches(), batch_size=None))

    plain = build(name, optimizer=PLAIN)
    optimizer = build_optimizer(plain.param_groups(), PLAIN, PLAIN.lr)
    if hasattr(plain, "fill"):  # what a trainer does before the first step
        plain.fill(batches())
    for batch in batches():
        optimizer.zero_grad()
        plain(batch.image, batch.index, batch.label).backward()
        optimizer.step()
    plain.after_optimizer_step()  # a further call would do it first
    expected, found = ours.state_dict(), plain.state_dict()
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key


def test_views_may_be_ones_own() -> None:
    method = SimCLR(network(), image_size=32, temperature=0.3, output_dim=8)
    views = two_crop("simclr", 32)(images(8), seed=1)
    given = method(views)
    assert torch.equal(given, method([view.image for view in views]))  # BatchNorm in training mode: the batch alone
    assert method.temperature == 0.3
    with pytest.raises(UserError, match=r"there are 3 view\(s\) and SimCLR takes 2\."):
        method([*views, views[0]])
    with pytest.raises(UserError, match="PixPro needs to know where a view lies"):
        PixPro(network(), image_size=64, hidden_dim=8, output_dim=4)([view.image for view in views])


def test_every_call_without_an_index_makes_new_views() -> None:
    method = SimCLR(network(), image_size=32)
    seen: list[Tensor] = []
    original = method.views.forward
    method.views.forward = lambda *a, **k: seen.append(k["index"]) or original(*a, **k)  # type: ignore[method-assign]
    method(images(8)), method(images(8))
    assert torch.cat(seen).tolist() == list(range(16))


def test_a_method_of_labels_asks_for_them() -> None:
    method = SupCon(network(), image_size=32)
    with pytest.raises(UserError, match="SupCon learns from labels; give label="):
        method(images(8))
    assert method(images(8), label=torch.arange(8) % 2).isfinite()


def test_what_is_frozen_in_an_epoch_gets_no_gradient_and_is_free_afterwards() -> None:
    settings = {"output_dim": 24, "hidden_dim": 16, "bottleneck_dim": 8}
    method = DINO(network(), views=multi_crop("dino", (32, 16), (2, 1)), **settings)
    for epoch, frozen in ((0, True), (1, False)):
        method.epoch = epoch
        method.zero_grad()
        method(images(8)).backward()
        assert (method.head.weight.grad is None) == frozen


@pytest.mark.parametrize("kind", ["tensor", "pair", "mapping"])
def test_a_plain_trainer_and_anybodys_loader(kind: str) -> None:
    data = TensorDataset(images(), torch.arange(IMAGES * STEPS) % 3)

    def collate(items: list[Any]) -> Any:
        image, label = (torch.stack(part) for part in zip(*items, strict=True))
        return {"tensor": image, "pair": (image, label), "mapping": {"image": image, "label": label}}[kind]

    method = MoCo(network(), image_size=32, batch_size=IMAGES, queue_size=32, bn_groups=1, optimizer={"lr": 0.1})
    before = method.backbone.state_dict()["network.conv1.weight"].clone()
    trainer().fit(method, DataLoader(data, IMAGES, collate_fn=collate))
    assert int(method.queue.pointer) == IMAGES * STEPS % 32
    assert not torch.equal(before, method.backbone.state_dict()["network.conv1.weight"])
    assert method.optimizer_config == dataclasses.replace(method.optimizer_config, name="momentum", lr=0.1)


def test_a_loader_of_another_batch_size_is_told() -> None:
    method = SimCLR(network(), image_size=32, optimizer=PLAIN)
    with pytest.warns(UserWarning, match="built for batch_size=256.*gives 16 images a step"):
        trainer(limit_train_batches=1).fit(method, DataLoader(TensorDataset(images()), IMAGES))
    with pytest.raises(UserError, match=r"must be images \[B,C,H,W\].*this one is str"):
        method.training_step("pictures", 0)


def test_settings_by_name_are_checked() -> None:
    with pytest.raises(UserError, match=r"SimCLR has no setting 'temprature'\. Did you mean 'temperature'"):
        SimCLR(network(), temprature=0.2)
    with pytest.raises(UserError, match="MoCo is not called 'moco_v9'"):
        MoCo(network(), name="moco_v9")
    assert MoCo(network(), name="moco_v1", image_size=32).temperature == 0.07


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2)


class Several(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x.mean(dim=(2, 3)), x


def test_any_module_is_a_backbone() -> None:
    trunk = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU())
    dense = wrap_backbone(trunk, 32)
    x = torch.rand(2, 1, 32, 32)
    assert (dense.dim, dense.in_channels) == (6, 1)
    assert torch.equal(dense(x), trunk(x).mean(dim=(2, 3)))
    assert torch.equal(dense.forward_dense(x), trunk(x))
    assert int(trunk[1].num_batches_tracked) == 4  # the three runs above, in training mode; the probe left it alone
    flat = wrap_backbone(nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 32)
    assert flat.dim == 6
    with pytest.raises(UserError, match="gives features without a map"):
        flat.forward_dense(x)
    assert wrap_backbone(dense) is dense
    loss = BarlowTwins(nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten()), image_size=32, hidden_dim=8)
    assert loss(images(8, 1)).isfinite()


def test_what_is_no_backbone_is_said() -> None:
    with pytest.raises(UserError, match=r"Tokens gives \[2, 3, 1024\] for two images"):
        wrap_backbone(Tokens(), 32)
    with pytest.raises(UserError, match="Several gives a tuple"):
        wrap_backbone(Several(), 32)
    with pytest.raises(UserError, match=r"Linear fails on images \[2, 3, 32, 32\]"):
        wrap_backbone(nn.Linear(5, 4), 32)
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))
    with pytest.warns(UserWarning, match="ends in a linear layer of 10 outputs, probably a classifier"):
        assert wrap_backbone(classifier, 32).dim == 10
