"""Networks that depend on the size of the images, and settings that other networks do not have, from the commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from selfsup.checkpoint import INFO, read_checkpoint
from selfsup.engine.training import train
from selfsup.errors import UserError
from selfsup.nn import BackboneConfig, build_backbone
from selfsup.opened import load_backbone

VIT = [
    "backbone=vit_small",
    "backbone.name=vit_tiny_patch16_224",
    "backbone.kwargs={depth: 1, embed_dim: 24, num_heads: 2}",
]
SHORT = ["trainer.max_epochs=1", "online.every_epochs=0", "data.train_size=36", "data.test_size=4"]


def test_crops_of_two_sizes_reach_a_transformer(tiny_config: Callable[..., Any]) -> None:
    config = tiny_config("dino", *SHORT, *VIT, "augment=dino", "augment.counts=[2,2]", "data.image_size=64")
    run = train(config)
    backbone = load_backbone(run)
    assert backbone.network.pos_embed.shape == (1, 17, 24)
    assert read_checkpoint(run)[INFO]["image_sizes"] == [64, 64, 32, 32, 64]
    with torch.no_grad():
        assert backbone(torch.rand(2, 3, 96, 96)).shape == (2, 24)


@pytest.mark.parametrize("more", [["data.image_size=60"], ["data.image_size=64", "augment.sizes=[50]"]])
def test_a_size_that_does_not_fit_is_found_before_the_folder_is_made(
    more: list[str], tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"48 or 64"):
        train(tiny_config("simclr", *SHORT, *VIT, *more))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_an_earlier_version_opens(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    values = dataclasses.asdict(tiny_config("simclr"))
    for name, kwargs in (
        ("vit_tiny_patch16_224", {"depth": 1, "img_size": 32}),
        ("resnet10t", {"zero_init_last": False}),
    ):
        old = build_backbone(BackboneConfig(name, kwargs=kwargs), 3)
        before = {"name": name, "small_stem": True, "stem_stride": 1, "width": 64, "blocks": [2, 2, 2, 2]}
        config = values | {"backbone": before | {"kwargs": kwargs}}
        info = {"config": config, "in_channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3, "epochs_done": 1}
        state = {f"backbone.{key}": value for key, value in old.state_dict().items()}
        torch.save({INFO: info, "state_dict": state}, tmp_path / "old.ckpt")
        found = load_backbone(tmp_path / "old.ckpt")
        x = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(found(x), old.eval()(x))


def test_the_default_preset_goes_with_every_network(tiny_config: Callable[..., Any]) -> None:
    config = tiny_config("simclr", *SHORT, "backbone=resnet18", "backbone.name=mobilenetv3_small_050")
    assert load_backbone(train(config)).dim == 1024
