"""Every preset composes, fits together and says how it is run."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from timm.models.resnet import Bottleneck
from tiny import written

from selfsup.augment import build_views
from selfsup.config import load_config
from selfsup.methods import Parts
from selfsup.nn import Teacher, build_backbone
from selfsup.optimization import build_optimizer, learning_rate_factors, scaled_lr
from selfsup.registry import methods
from selfsup.settings.catalog import choices
from selfsup.types import Normalization

PRESETS = sorted(choices("experiment"))


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_composes_and_builds(preset: str) -> None:
    """At its full size: on the meta device nothing is allocated."""
    config = load_config([f"experiment={preset}", "data.root=/pictures"])
    with torch.device("meta"):
        backbone = build_backbone(config.backbone, 3)
        views = build_views(config.augment, config.data.image_size, Normalization((0.5,) * 3, (0.2,) * 3))
        taught = hasattr(config.method, "teacher")  # by whatever network
        teacher = Teacher(build_backbone(config.backbone, 3), views.normalization, 3) if taught else None
        parts = Parts(backbone, views, config.optimizer, config.batch_size, teacher=teacher)
        method = methods[config.method.name].target(config.method, parts)
        optimizer = build_optimizer(
            method.param_groups(), config.optimizer, scaled_lr(config.optimizer, config.batch_size)
        )
    assert learning_rate_factors(config.optimizer, 100, config.trainer.max_epochs, optimizer)[0](100) < 1
    if "/" in preset:  # imagenet/moco_v3_vit is MoCo v3 too
        assert preset.split("/")[1].startswith(config.method.name)


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_begins_with_its_command_and_evidence(preset: str) -> None:
    text = (files("selfsup.configs") / "experiment" / f"{preset}.yaml").read_text("utf-8")
    header = text[: text.index("defaults:")]
    assert f"selfsup train experiment={preset}" in header
    assert header.startswith("# @package _global_\n")


AUTHORS = [preset for preset in PRESETS if preset.startswith("imagenet/")]
#: Whose code begins with the last BatchNorm scale of every residual block at zero (``zero_init_residual=True``, or
#: ``init_zero`` and ``scale_init`` in the TensorFlow and JAX codes): ``ZERO_LAST`` of a method's tests says so.
ZERO_LAST = {name for name, zero in written("ZERO_LAST").items() if zero}


@pytest.mark.parametrize("preset", AUTHORS)
def test_presets_of_papers_pretrain_on_every_image(preset: str) -> None:
    assert load_config([f"experiment={preset}", "data.root=/pictures"]).data.holdout == 0


@pytest.mark.parametrize("preset", AUTHORS)
def test_presets_of_papers_begin_as_the_authors_networks(preset: str) -> None:
    config = load_config([f"experiment={preset}", "data.root=/pictures"]).backbone
    if not config.name.startswith("resnet"):
        return
    own = preset.split("/")[1]
    small = replace(config, name="resnet26")  # the same blocks, fewer of them
    blocks = [module for module in build_backbone(small, 3).modules() if isinstance(module, Bottleneck)]
    scales = torch.cat([block.bn3.weight.detach() for block in blocks])
    assert len(blocks) == 8
    assert bool((scales == (0.0 if own in ZERO_LAST else 1.0)).all())


@pytest.mark.parametrize("size", ["small", "imagenet", "cifar10"])
def test_every_method_has_a_preset_of_each_size(size: str) -> None:
    own = {name for name in methods if methods[name].target.__module__.startswith("selfsup.")}  # no test's methods
    assert own <= {name.split("/")[1] for name in PRESETS if name.startswith(f"{size}/")}
