"""PixContrast by hand, and what an implementation of it may get wrong."""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.functional import location_grid
from selfsup.types import View

TINY = ["method.hidden_dim=16", "method.output_dim=8"]

SETTINGS = ["data.image_size=64", "augment.override={scale: [0.08, 0.3]}"]  # 16 cells; not all images overlap


def drift(network: nn.Module) -> None:
    """Take a momentum network away from the online one."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.2).add_(0.1 * torch.randn_like(parameter))


def direction(query: Tensor, key: Tensor, one: View, other: View, temperature: float, threshold: float) -> Tensor:
    """Cell by cell: minus the log of the share that the matched cells of the other view have."""
    size, images = query.shape[-1], []
    for n in range(len(query)):
        grids = [location_grid(view.to_source[n : n + 1], size).reshape(-1, 2) for view in (one, other)]
        diagonal = max(float(view.to_source[n, :, :2].square().sum().sqrt()) / size for view in (one, other))
        cells = []
        for i, place in enumerate(grids[0]):
            positive = (grids[1] - place).norm(dim=1) / diagonal < threshold
            similar = nn.functional.cosine_similarity(query[n].flatten(1)[:, i, None], key[n].flatten(1), dim=0)
            exponentials = (similar / temperature).exp()
            if positive.any():
                cells.append(-(exponentials[positive].sum() / exponentials.sum()).log())
        images.append(torch.stack(cells).mean() if cells else query.sum() * 0)
    assert {image.item() == 0 for image in images} == {True, False}
    return torch.stack(images).mean()


def test_one_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    """Each view alone through each network; the mean of both directions."""
    method, batch = prepared(tiny_config("pixcontrast", *SETTINGS))
    drift(method.key_encoder)
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    first, second = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    q1, q2 = (twin.projector(twin.backbone.forward_dense(view.image)) for view in (first, second))
    keys = twin.key_encoder.module
    with torch.no_grad():
        k1, k2 = (keys.head(keys.backbone.forward_dense(view.image)) for view in (first, second))
    expected = (direction(q1, k2, first, second, 0.3, 0.7) + direction(q2, k1, second, first, 0.3, 0.7)) / 2
    torch.testing.assert_close(loss, expected)

    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)
        else:
            assert ours.grad is None


def test_images_do_not_see_each_other(tiny_config: Callable[..., Any]) -> None:
    """Negatives are of the same image: what the others' cells look like changes no loss."""
    method, batch = prepared(tiny_config("pixcontrast", "method.temperature=0.1"))
    method.eval()
    method.key_encoder.eval()  # no batch statistics: then each image is on its own
    views = method.views(batch.image, seed=1, index=batch.index)
    whole = method.step(views, batch).loss
    parts = [
        method.step(tuple(View(v.image[n : n + 4], v.to_source[n : n + 4]) for v in views), batch).loss
        for n in range(0, 16, 4)
    ]
    assert float(torch.stack(parts).std()) > 0
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_equal_cells_have_the_loss_of_chance(tiny_config: Callable[..., Any]) -> None:
    """Whole images against themselves, four cells, one match each: ln 4."""
    method, batch = prepared(tiny_config("pixcontrast"))
    for head in (method.projector, method.key_encoder.module.head):
        nn.init.zeros_(head[-1].weight)
        nn.init.ones_(head[-1].bias)
    views = method.views(batch.image, seed=0, index=batch.index)
    whole = torch.eye(2, 3).expand(16, -1, -1)
    output = method.step(tuple(View(view.image, whole) for view in views), batch)
    assert output.loss.item() == pytest.approx(math.log(4), rel=1e-6)
    assert output.logs["matched_cells"].item() == 1


def test_crops_apart_move_nothing(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("pixcontrast"))
    views = method.views(batch.image, seed=0, index=batch.index)
    corners = [torch.tensor([[0.4, 0, at], [0, 0.4, at]]).expand(16, -1, -1) for at in (0.0, 0.6)]
    output = method.step(tuple(View(v.image, c) for v, c in zip(views, corners, strict=True)), batch)
    assert output.loss.item() == 0
    output.loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.99), (50, 0.995), (100, 1.0)])
def test_key_encoder_follows(step: int, momentum: float, tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("pixcontrast"))
    drift(method.key_encoder)
    method.trainer = types.SimpleNamespace(global_step=step)  # type: ignore[assignment]
    method.total_steps = 100
    before = [p.clone() for p in method.key_encoder.parameters()]
    method.after_optimizer_step()
    online = [*method.backbone.parameters(), *method.projector.parameters()]
    for moved, old, new in zip(method.key_encoder.parameters(), before, online, strict=True):
        torch.testing.assert_close(moved, momentum * old + (1 - momentum) * new)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("method.temperature=0", "temperature"),
        ("method.momentum=-0.1", "momentum"),
        ("method.threshold=-1", "threshold"),
        ("augment.sizes=[16]", "1×1"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting: str, words: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=words):
        tiny_method("pixcontrast", setting)
