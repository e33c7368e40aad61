"""An anchor by itself: which passes it follows, what it makes of tokens, and that it stays as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfsup.functional import gram_distance
from selfsup.methods import Anchor, SimCLR
from selfsup.nn import Backbone, BackboneConfig, build_backbone
from selfsup.types import Batch, StepOutput

KWARGS = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2, "drop_path_rate": 0.5}


def pair(kind: str = "cosine", weight: float = 1.0) -> tuple[Backbone, Anchor]:
    """A backbone that has moved, in training, and the anchor of what it was."""
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig("vit_tiny_patch16_224", kwargs=dict(KWARGS)), 3, image_sizes=[16]).double()
    anchor = Anchor(copy.deepcopy(backbone), kind, weight)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone.eval(), anchor


def images(count: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(features: Tensor, before: Tensor) -> Tensor:
    return 1 - nn.functional.cosine_similarity(features, before).mean()


def held(anchor: Anchor, backbone: Backbone, step: Any) -> StepOutput:
    return anchor.hold(backbone, lambda: StepOutput(step()))


@pytest.mark.parametrize("kind", ["cosine", "gram"])
def test_features_of_all_passes_are_held_together(kind: str) -> None:
    backbone, anchor = pair(kind, 0.3)
    views = images(), images(seed=2)
    output = held(anchor, backbone, lambda: sum(backbone(view).sum() for view in views))
    now = torch.cat([backbone(view) for view in views])
    before = torch.cat([anchor.original(view) for view in views])
    value = gram_distance(now, before) if kind == "gram" else distance(now, before)
    torch.testing.assert_close(output.logs["anchor"], value)
    torch.testing.assert_close(output.loss, now.sum() + 0.3 * value)


def test_a_pass_without_gradients_is_not_followed() -> None:
    backbone, anchor = pair()

    def step() -> Tensor:
        with torch.no_grad():
            backbone(images(seed=2))
        return backbone(images()).sum()

    value = held(anchor, backbone, step).logs["anchor"]
    torch.testing.assert_close(value, distance(backbone(images()), anchor.original(images())))


def test_of_tokens_the_mean_of_the_patches_is_held_and_masked_passes_are_free() -> None:
    backbone, anchor = pair()
    keep = torch.zeros(4, 1, dtype=torch.long)

    def step() -> Tensor:
        backbone.forward_tokens(images(seed=2), keep=keep)
        return backbone.forward_tokens(images()).patches.sum()

    value = held(anchor, backbone, step).logs["anchor"]
    means = [network.forward_tokens(images()).patches.mean(1) for network in (backbone, anchor.original)]
    torch.testing.assert_close(value, distance(*means))


def test_the_copy_stays_in_evaluation_without_gradients() -> None:
    backbone, anchor = pair()
    anchor.train()
    nn.ModuleList([anchor]).train()
    assert not any(module.training for module in anchor.modules())
    held(anchor, backbone, lambda: backbone(images()).sum()).loss.backward()
    assert all(parameter.grad is None for parameter in anchor.parameters())
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_while_the_backbone_rests_nothing_is_held() -> None:
    torch.manual_seed(0)
    network = build_backbone(BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1]), 3)
    method = SimCLR(network, image_size=32, batch_size=8, output_dim=8)
    method.anchor = Anchor(copy.deepcopy(method.backbone), "cosine", 1.0)
    method.backbone.freeze_epochs = 1
    batch = Batch(torch.rand(8, 3, 32, 32), None, torch.arange(8))
    for epoch, followed in ((0, False), (1, True)):
        method.epoch = epoch
        views = method.draw_views(batch, 0)
        assert ("anchor" in method.held_step(views, batch).logs) == followed
