"""ReSSL by hand: the weak view's keys against the queue as it was, then they go in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import nn

from selfsup.errors import UserError
from selfsup.functional import ressl_loss

TINY = ["method.queue_size=48", "method.bn_groups=4", "method.hidden_dim=16", "method.output_dim=8"]
RANKS = [["method.bn_groups=2"], ["method.bn_groups=4", "method.queue_size=37"]]


def test_step_compares_with_the_old_queue_then_enqueues_the_key(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("ressl"))
    with torch.no_grad():
        for parameter in method.key_encoder.parameters():  # a key encoder that has drifted apart
            parameter.mul_(1.1).add_(0.01 * torch.randn_like(parameter))
    twin = copy.deepcopy(method)
    old = method.queue.negatives()
    loss = method.training_step(batch, 0)

    strong, weak = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    query = twin.head(twin.backbone(strong.image))
    order = method.batch_permutation(len(batch.index))
    with torch.no_grad():
        key = torch.empty_like(query)
        key[order] = twin.key_encoder.module(weak.image[order])
    torch.testing.assert_close(loss, ressl_loss(query, key, old, 0.1, 0.04))
    count = len(key)
    torch.testing.assert_close(method.queue.keys[:count], nn.functional.normalize(key))
    assert torch.equal(method.queue.keys[count:], old[count:])

    # a loss that saw its own keys among the anchors would change when they are not enqueued
    twin.trainer, twin.queue.enqueue = method.trainer, lambda keys: None
    assert torch.equal(twin.training_step(batch, 0), loss)


def test_temperatures_reach_their_sides(tiny_config: Callable[..., Any]) -> None:
    losses = []
    for settings in ([], ["method.temperature=0.2"], ["method.key_temperature=0.2"]):
        method, batch = prepared(tiny_config("ressl", *settings))
        losses.append(float(method.training_step(batch, 0).detach()))
    assert len({round(loss, 4) for loss in losses}) == 3


def test_the_key_encoder_follows_after_the_step_with_a_constant_momentum(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("ressl", "method.momentum=0.75"))
    before = [p.clone() for p in method.key_encoder.parameters()]
    with torch.no_grad():
        for parameter in (*method.backbone.parameters(), *method.head.parameters()):
            parameter.add_(torch.randn_like(parameter))
    method.after_optimizer_step()
    online = [*method.backbone.parameters(), *method.head.parameters()]
    for key, old, query in zip(method.key_encoder.parameters(), before, online, strict=True):
        torch.testing.assert_close(key, 0.75 * old + 0.25 * query)


def test_the_key_s_view_has_a_crop_and_a_flip_alone(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("ressl", "augment.small=false"))
    strong, weak = method.views.recipes
    assert (strong.jitter_p, strong.gray_p, strong.blur_p) == (0.8, 0.2, 0.5)
    assert (weak.jitter_p, weak.gray_p, weak.blur_p, weak.solarize_p, weak.flip_p) == (0, 0, 0, 0, 0.5)


def test_the_head_is_the_authors(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("ressl"))
    assert [type(m).__name__ for m in method.head] == ["Linear", "ReLU", "Linear"]
    defaults = type(tiny_config("ressl").method)()
    assert (defaults.hidden_dim, defaults.output_dim) == (4096, 512)
    assert (defaults.queue_size, defaults.momentum) == (131072, 0.999)


def test_what_cannot_be_is_refused(tiny_config: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"method\.queue_size=15"):
        prepared(tiny_config("ressl", "method.queue_size=15"))
    with pytest.raises(UserError, match=r"method\.bn_groups=9"):
        prepared(tiny_config("ressl", "method.bn_groups=9"))
