"""SimCLR: its loss, and what the authors' form of it changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared

from selfsup.config import load_config
from selfsup.optimization import build_optimizer

ZERO_LAST = True


def test_the_authors_form_adds_the_mean_losses_of_the_views(tiny_config: Callable[..., Any]) -> None:
    """Each view's anchors by PyTorch's cross-entropy, over the other view and the rest of their own."""
    method, batch = prepared(tiny_config("simclr", "method.sum_views=true"))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)

    views = twin.draw_views(batch, 0)
    z = torch.nn.functional.normalize(twin.head(twin.encode(views).flatten(0, 1)), dim=1)
    first, second = z.chunk(2)
    count = len(first)
    masked = torch.full((count,), -torch.inf).diag().nan_to_num(nan=0.0, neginf=-torch.inf)
    expected = torch.zeros(())
    for own, other in ((first, second), (second, first)):
        logits = torch.cat([own @ other.T, own @ own.T + masked], dim=1) / method.temperature
        expected = expected + torch.nn.functional.cross_entropy(logits, torch.arange(count))
    torch.testing.assert_close(loss, expected)


def test_what_follows_from_the_factor(tiny_config: Callable[..., Any]) -> None:
    """Beside a decay half as large, LARS takes the same steps of half the loss; what it does not adapt moves half."""
    preset = load_config(["experiment=imagenet/simclr", "data.root=."])
    assert preset.method.sum_views
    moved = []
    for factor, decay in ((1.0, 0.05), (2.0, 0.1)):
        method, batch = prepared(tiny_config("simclr", f"method.sum_views={factor == 2}"))
        method.double().optimizer_config.weight_decay = decay
        method.optimizer_config.name = "lars"
        optimizer = build_optimizer(method.param_groups(), method.optimizer_config, 0.5)
        before = {name: p.detach().clone() for name, p in method.named_parameters()}
        method.training_step(batch, 0).backward()
        optimizer.step()
        moved.append({name: p.detach() - before[name] for name, p in method.named_parameters()})
    for name, step in moved[0].items():
        torch.testing.assert_close(moved[1][name], step * (2 if step.ndim == 1 else 1), rtol=1e-9, atol=1e-15)


def test_the_preset_leaves_the_colours_as_they_are() -> None:
    data = load_config(["experiment=imagenet/simclr", "data.root=."]).data
    assert (data.mean, data.std) == ([0.0] * 3, [1.0] * 3)
    assert load_config(["experiment=imagenet/byol", "data.root=."]).data.mean == pytest.approx([0.485, 0.456, 0.406])
