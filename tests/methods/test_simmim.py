"""SimMIM by hand, and what implementations of it get wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import Tensor

from selfsup.config import load_config
from selfsup.errors import UserError
from selfsup.types import Batch, View

TINY = [
    "backbone=vit_small_mean",
    "backbone.kwargs.patch_size=8",
    "backbone.kwargs.embed_dim=16",
    "backbone.kwargs.depth=2",
    "backbone.kwargs.num_heads=2",
]


def watched(method: Any) -> list[dict[str, Tensor]]:
    """The masks of each step."""
    found: list[dict[str, Tensor]] = []
    original = method.backbone.forward_tokens

    def forward(images: Tensor, mask: Tensor, token: Tensor) -> Any:
        tokens = original(images, mask, token)
        found.append({"mask": mask, "token": token, "patches": tokens.patches})
        return tokens

    method.backbone.forward_tokens = forward
    return found


def by_hand(method: Any, images: Tensor, mask: Tensor) -> Tensor:
    """The authors' formula on pixels: Σ |x − ŷ| mask / (C Σ mask)."""
    network, head = method.backbone.network, method.head
    total, count = torch.zeros((), dtype=images.dtype), 0
    kernel, positions = network.patch_embed.proj, network.pos_embed[0]
    for image, hidden in zip(images, mask.tolist(), strict=True):
        sequence = [network.cls_token[0, 0] + positions[0]]
        for place in range(16):
            row, column = divmod(place, 4)
            patch = image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            embedded = (kernel.weight * patch).sum((1, 2, 3)) + kernel.bias
            token = method.mask_token.weight[0, 0] if hidden[place] else embedded
            sequence.append(token + positions[1 + place])
        tokens = network.norm(network.blocks(torch.stack(sequence)[None]))[0]
        for place in range(16):
            if not hidden[place]:
                continue
            row, column = divmod(place, 4)
            painted = (head.weight @ tokens[1 + place] + head.bias).view(8, 8, 3)
            for y in range(8):
                for x in range(8):
                    pixel = image[:, 8 * row + y, 8 * column + x]
                    total, count = total + (pixel - painted[y, x]).abs().sum(), count + 1
    return total / (3 * count)


def test_one_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("simmim", "batch_size=3"))
    method.double()
    twin = copy.deepcopy(method)
    found = watched(method)
    loss = method.training_step(batch, 0)
    (view,) = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    expected = by_hand(twin, view.image.double(), found[0]["mask"])
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_squares_of_patches_are_hidden_together_and_differ_by_image_and_epoch(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("simmim"))
    found = watched(method)
    method.training_step(batch, 0)
    squares = found[0]["mask"].view(-1, 2, 2, 2, 2).transpose(2, 3).flatten(3)
    assert torch.equal(squares.any(3), squares.all(3))
    assert squares.all(3).sum((1, 2)).tolist() == [2] * 16  # round(0.6 · 4)
    assert len({tuple(row) for row in found[0]["mask"].tolist()}) > 3
    method.trainer.fit_loop.epoch_progress.current.completed = 1
    method.training_step(batch, 0)
    assert not torch.equal(found[0]["mask"], found[1]["mask"])


def test_hidden_pixels_reach_the_loss_and_never_the_prediction(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("simmim"))
    found = watched(method)
    views = method.draw_views(batch, 0)
    before = method.step(views, batch).loss
    pixels = found[0]["mask"].view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    views[0].image.add_(pixels * torch.randn_like(views[0].image))
    after = method.step(views, batch).loss
    assert torch.equal(found[0]["patches"], found[1]["patches"])
    assert not torch.equal(before, after)


def test_the_mask_token_is_not_part_of_what_is_evaluated(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("simmim"))
    assert method.evaluated_backbone is method.backbone
    assert not [name for name in method.backbone.state_dict() if "mask" in name]


def test_defaults_are_the_papers() -> None:
    config = load_config(["method=simmim", "data.image_size=224"])
    optimizer = config.optimizer
    assert (config.method.mask_ratio, config.method.mask_cell) == (0.6, 2)
    assert (optimizer.name, optimizer.lr, optimizer.reference_batch, optimizer.weight_decay) == (
        "adamw",
        1e-4,
        512,
        0.05,
    )
    assert (optimizer.schedule, optimizer.milestones, optimizer.drop) == ("steps", [700], 0.1)
    assert (config.augment.recipe, config.augment.counts) == ("simmim", [1])


SWIN_KWARGS = {
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 4,
    "drop_path_rate": 0.0,
}


def test_one_step_of_a_swin_by_hand(tiny_config: Callable[..., Any]) -> None:
    """Each token of the last stage paints the 4 × 4 pixels that it stands for; patches of 2 pixels are hidden."""
    config = tiny_config("simmim", "batch_size=3", "method.mask_cell=4")
    config.backbone.name, config.backbone.kwargs = "swin_tiny_patch4_window7_224", SWIN_KWARGS
    method, batch = prepared(config)
    method.double()
    twin = copy.deepcopy(method)
    found = watched(method)
    loss = method.training_step(batch, 0)
    (view,) = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    images, mask = view.image.double(), found[0]["mask"].view(3, 16, 16)
    network, token = twin.backbone.network, twin.mask_token.weight[0, 0]
    stem = torch.where(mask[..., None], token, network.patch_embed(images))
    last = network.norm(network.layers(stem))  # [3,8,8,16]
    total, count = torch.zeros((), dtype=torch.float64), 0
    for n in range(3):
        for row in range(32):
            for column in range(32):
                if not mask[n, row // 2, column // 2]:
                    continue
                painted = twin.head(last[n, row // 4, column // 4]).view(4, 4, 3)[row % 4, column % 4]
                total, count = total + (images[n, :, row, column] - painted).abs().sum(), count + 1
    assert count == 3 * 10 * 64  # round(0.6 · 16) squares of 8 pixels
    torch.testing.assert_close(loss, total / (3 * count))
    loss.backward()
    (total / (3 * count)).backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        assert ours.grad.ne(0).any(), name
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_of_rectangles_a_swin_paints_each_square_where_it_lies(tiny_config: Callable[..., Any]) -> None:
    """8 × 4 squares of 4 pixels: rows and columns are not exchanged."""
    config = tiny_config("simmim", "method.mask_cell=4")
    config.backbone.name, config.backbone.kwargs = "swin_tiny_patch4_window7_224", SWIN_KWARGS
    method, _ = prepared(config)
    found = watched(method)
    image = torch.randn(3, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    method.grid = (16, 8)
    batch = Batch(image, None, torch.arange(3))
    method.seed_step(0)
    loss = method.step((View(image, torch.zeros(3, 2, 3)),), batch).loss
    painted = method.head(found[0]["patches"]).view(3, 8, 4, 4, 4, 3)  # [N,row,column,y,x,C]
    painted = painted.permute(0, 5, 1, 3, 2, 4).reshape(3, 3, 32, 16)
    hidden = found[0]["mask"].view(3, 1, 16, 8).repeat_interleave(2, 2).repeat_interleave(2, 3).expand_as(image)
    torch.testing.assert_close(loss, (painted - image).abs()[hidden].mean())


def test_a_network_of_another_kind_is_refused_by_name(tiny_config: Callable[..., Any]) -> None:
    config = tiny_config("simmim")
    config.backbone.name, config.backbone.kwargs = "convnext_atto", {}
    with pytest.raises(UserError, match="a plain vision transformer or a Swin transformer, and ConvNeXt is none"):
        prepared(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.mask_cell=3", r"method\.mask_cell=3 does not divide the grid of 4×4 patches"),
        ("method.mask_ratio=0.1", r"method\.mask_ratio=0\.1 masks 0 of the 4 squares"),
        ("method.mask_ratio=0.9", r"method\.mask_ratio=0\.9 masks 4 of the 4 squares"),
    ],
)
def test_mistakes_are_named(override: str, message: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message):
        tiny_method("simmim", override)
