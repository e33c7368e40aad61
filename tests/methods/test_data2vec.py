"""data2vec by hand, and what implementations of it get wrong."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import Tensor

from selfsup.config import load_config
from selfsup.errors import UserError
from selfsup.functional import block_mask

TINY = [
    "backbone=vit_small_mean",
    "backbone.kwargs.patch_size=8",
    "backbone.kwargs.embed_dim=16",
    "backbone.kwargs.depth=6",
    "backbone.kwargs.num_heads=2",
    "method.layers=2",
]


def drift(method: Any) -> None:
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def masks_of(method: Any) -> list[Tensor]:
    found: list[Tensor] = []
    original = method.backbone.forward_tokens

    def forward(images: Tensor, mask: Tensor, *args: Any, **kwargs: Any) -> Any:
        found.append(mask)
        return original(images, mask, *args, **kwargs)

    method.backbone.forward_tokens = forward
    return found


def blocks_of(network: Any, image: Tensor, hidden: list[bool], token: Tensor | None) -> list[list[Tensor]]:
    """The patch tokens of one image after each block, before any norm."""
    kernel, positions = network.patch_embed.proj, network.pos_embed[0]
    sequence = [network.cls_token[0, 0] + positions[0]]
    for place in range(16):
        row, column = divmod(place, 4)
        patch = image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        embedded = (kernel.weight * patch).sum((1, 2, 3)) + kernel.bias
        sequence.append((token if hidden[place] and token is not None else embedded) + positions[1 + place])
    x, outputs = torch.stack(sequence)[None], []
    for block in network.blocks:
        x = block(x)
        outputs.append(list(x[0, 1:]))
    return outputs


def normal(row: list[float]) -> list[float]:
    mean = math.fsum(row) / len(row)
    variance = math.fsum((value - mean) ** 2 for value in row) / len(row)
    return [(value - mean) / math.sqrt(variance + 1e-5) for value in row]


def by_hand(method: Any, images: Tensor, mask: Tensor) -> Tensor:
    total, count = torch.zeros((), dtype=images.dtype), 0
    for image, hidden in zip(images, mask.tolist(), strict=True):
        with torch.no_grad():
            above = blocks_of(method.teacher.module.network, image, [False] * 16, None)[-2:]
        seen = blocks_of(method.backbone.network, image, hidden, method.mask_token.weight[0, 0])[-1]
        for place in range(16):
            if not hidden[place]:
                continue
            layers = [normal(layer[place].tolist()) for layer in above]
            target = normal([sum(values) / 2 for values in zip(*layers, strict=True)])
            for predicted, wanted in zip(method.regressor(seen[place]), target, strict=True):
                distance = (predicted - wanted).abs()
                total = total + (distance**2 / 4 if distance < 2 else distance - 1)
                count += 1
    return total / count


def test_one_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("data2vec", "batch_size=3"))
    method.double()
    drift(method)
    twin = copy.deepcopy(method)
    masks = masks_of(method)
    loss = method.training_step(batch, 0)
    (view,) = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    expected = by_hand(twin, view.image.double(), masks[0])
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_the_teacher_sees_the_whole_image_in_evaluation(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("data2vec", "backbone.kwargs.drop_path_rate=0.9"))
    method.train()
    assert not any(module.training for module in method.teacher.module.modules())
    assert all(module.training for module in method.backbone.modules())
    images = method.draw_views(batch, 0)[0].image
    first, second = (method.teacher.forward_tokens(images).patches for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, method.teacher.module.forward_tokens(images).patches)


def test_every_image_has_as_many_masked_tokens(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("data2vec"))
    masks = masks_of(method)
    method.training_step(batch, 0)
    method.trainer.fit_loop.epoch_progress.current.completed = 1
    method.training_step(batch, 0)
    assert masks[0].sum(1).tolist() == [10] * 16  # round(16 · 120 / 196)
    assert len({tuple(row) for row in masks[0].tolist()}) > 8
    assert not torch.equal(masks[0], masks[1])


def test_masks_are_blocks_of_at_least_the_smallest_area(tiny_config: Callable[..., Any]) -> None:
    """A quarter of 16 tokens: blocks from 4 on, and of 10 masked tokens in all."""
    method, batch = prepared(tiny_config("data2vec", "method.min_block=0.25"))
    found = masks_of(method)
    method.training_step(batch, 0)
    draw = method.draw(batch.index, 0)
    assert torch.equal(found[0], block_mask(draw, (4, 4), 10, least=4))
    assert not torch.equal(found[0], block_mask(draw, (4, 4), 10, least=1))


def test_the_teacher_follows_with_a_constant_momentum_and_without_the_mask_token(
    tiny_config: Callable[..., Any],
) -> None:
    method, _ = prepared(tiny_config("data2vec", "method.momentum=0.75"))
    drift(method)
    names = [name for name, _ in method.backbone.named_parameters()]
    assert [name for name, _ in method.teacher.module.named_parameters()] == names
    before = [value.clone() for value in method.teacher.parameters()]
    method.after_optimizer_step()
    for now, old, online in zip(method.teacher.parameters(), before, method.backbone.parameters(), strict=True):
        torch.testing.assert_close(now, 0.75 * old + 0.25 * online.detach())


def test_the_last_norm_stays_as_it_began_and_the_student_is_evaluated(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("data2vec"))
    norm = method.backbone.network.norm
    assert not any(parameter.requires_grad for parameter in norm.parameters())
    assert bool((norm.weight == 1).all() and (norm.bias == 0).all())
    assert method.evaluated_backbone is method.backbone
    method.training_step(batch, 0).backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


def test_how_much_the_targets_differ_is_logged(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("data2vec"))
    views = method.draw_views(batch, 0)
    spread = method.step(views, batch).logs["target_std"]
    assert float(spread) > 0
    with torch.no_grad():  # the same at every place
        for network in (method.teacher.module.network,):
            network.pos_embed.zero_()
            network.patch_embed.proj.weight.zero_()
    assert float(method.step(views, batch).logs["target_std"]) == pytest.approx(0, abs=1e-3)


def test_defaults_are_the_authors() -> None:
    config = load_config(["method=data2vec", "data.image_size=224"])
    method, optimizer = config.method, config.optimizer
    assert round(method.mask_ratio * 196) == 120
    assert (round(method.min_block * 196), method.layers, method.beta, method.momentum) == (16, 6, 2.0, 0.9998)
    assert (optimizer.name, optimizer.lr, optimizer.reference_batch, optimizer.weight_decay) == (
        "adamw",
        2e-3,
        2048,
        0.05,
    )
    assert (config.augment.recipe, config.augment.counts) == ("data2vec", [1])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.layers=7", r"method\.layers=7 is more than the network's 6 blocks"),
        ("method.min_block=0.7", r"method\.min_block=0\.7 is more than method\.mask_ratio=0\.61"),
        ("method.mask_ratio=0.01", r"method\.mask_ratio=0\.01 masks 0 of the 16 patches"),
    ],
)
def test_mistakes_are_named(override: str, message: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message):
        tiny_method("data2vec", override)
