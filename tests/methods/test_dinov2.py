"""DINOv2 by hand: codes, masks of exactly half of the crops, KoLeo, and the Gram loss of DINOv3."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from test_ibot import drawn_masks, entropy, logits
from torch import Tensor

from selfsup.config import load_config
from selfsup.functional import sinkhorn
from selfsup.methods.distilled import spread_masks

TINY = [
    "backbone=vit_small",
    "backbone.kwargs.patch_size=8",
    "backbone.kwargs.embed_dim=16",
    "backbone.kwargs.depth=2",
    "backbone.kwargs.num_heads=2",
    "backbone.kwargs.reg_tokens=1",
    "augment.sizes=[32,16]",
    "augment.counts=[2,2]",
    "method.output_dim=24",
    "method.hidden_dim=16",
    "method.bottleneck_dim=8",
]
# all crops of one size: timm resamples positions in float32, which a test of float64 sees
RANKS = [
    ["augment.sizes=[32,32]"],
    ["augment.sizes=[32,32]", "method.freeze_last_layer_epochs=0", "method.momentum=0.9", "method.gram_weight=1"],
    ["augment.sizes=[32,32]", "method.mask_share=0.03"],  # a single crop is masked: one rank has no masked patch
]


def tokens_with_registers(backbone: Any, image: Tensor, mask: list[bool], token: Tensor) -> Tensor:
    """Class token, then patches: the register stands between them, and nothing reads it."""
    network = backbone.network
    kernel = network.patch_embed.proj
    patches = [image[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8] for r in range(4) for c in range(4)]
    embedded = [
        token if hidden else (kernel.weight * patch).sum((1, 2, 3)) + kernel.bias
        for patch, hidden in zip(patches, mask, strict=True)
    ]
    sequence = torch.stack([network.cls_token[0, 0], network.reg_token[0, 0], *embedded]) + network.pos_embed[0]
    out = network.norm(network.blocks(sequence[None]))[0]
    return torch.cat([out[:1], out[2:]])


def nearest_distance(rows: list[Tensor], n: int) -> Tensor:
    units = [row / row.norm() for row in rows]
    cosines = [(units[n] @ other).item() if k != n else -2.0 for k, other in enumerate(units)]
    return (units[n] - units[cosines.index(max(cosines))]).norm()


def test_one_step_is_the_loop_in_value_and_gradient(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["batch_size=5", "method.patch_weight=0.7", "method.koleo_weight=0.3", "method.gram_weight=1.5"]
    method, batch = prepared(tiny_config("dinov2", *overrides))
    method = method.double()
    with torch.no_grad():
        for part in (method.teacher, method.teacher_head, method.teacher_patch_head):
            for parameter in part.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    twin = copy.deepcopy(method)
    masks = drawn_masks(method, monkeypatch, "spread_masks")
    output = method.training_step(batch, 0)
    views = [view.image.double() for view in twin.views(batch.image, seed=twin_seed(method), index=batch.index)]
    mask = masks[0].view(2, 5, 16).tolist()
    whole, token = [False] * 16, twin.mask_token.weight[0, 0]
    with torch.no_grad():
        teacher = [
            [tokens_with_registers(twin.teacher.module, v[n], whole, token) for n in range(5)] for v in views[:2]
        ]
        classes = torch.stack([logits(twin.teacher_head.module, t[0]) for view in teacher for t in view])
        codes = sinkhorn(classes, 0.04).view(2, 5, 24)
        hidden = [(v, n, p) for v in range(2) for n in range(5) for p in range(16) if mask[v][n][p]]
        pool = torch.stack([logits(twin.teacher_patch_head.module, teacher[v][n][1 + p]) for v, n, p in hidden])
        patch_codes = dict(zip(hidden, sinkhorn(pool, 0.04), strict=True))
    student = [
        [tokens_with_registers(twin.backbone, v[n], mask[i][n], token) for n in range(5)]
        for i, v in enumerate(views[:2])
    ]
    local = [twin.backbone(v) for v in views[2:]]
    total = torch.zeros((), dtype=torch.float64)
    for q in range(2):
        for n in range(5):
            for v in range(4):
                if v != q:
                    seen = student[v][n][0] if v < 2 else local[v - 2][n]
                    total = total + entropy(codes[q, n], logits(twin.head, seen) / 0.1) / (5 * 2 * 3)
            own = student[q][n][1:]
            for place in range(16):
                if mask[q][n][place]:
                    there = entropy(patch_codes[q, n, place], logits(twin.patch_head, own[place]) / 0.1)
                    total = total + 0.7 * there / sum(mask[q][n]) / 10
            total = total - 0.3 * torch.log(nearest_distance([s[0] for s in student[q]], n) + 1e-8) / 5
            units, held = (x / x.norm(dim=1, keepdim=True) for x in (own, teacher[q][n][1:]))
            total = total + 1.5 * (units @ units.T - held @ held.T).square().sum() / 256 / 10
    torch.testing.assert_close(output, total, rtol=1e-8, atol=1e-8)
    output.backward()
    total.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8, msg=name)


def test_exactly_half_of_the_crops_are_masked_and_a_rank_takes_its_own(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("dinov2"))
    method.seed_step(0)
    draws = [method.draw(batch.index, view) for view in range(2)]
    mask = spread_masks(draws, method.draw_whole(1), (4, 4), [0.1, 0.5], 0.5)
    counts = mask.sum(1)
    assert mask.shape == (32, 16)
    assert (counts > 0).sum() == 16
    ratios = counts[counts > 0].sort().values / 16
    for number, ratio in enumerate(ratios.tolist()):
        assert 0.1 + 0.4 * number / 16 - 1 / 32 <= ratio <= 0.1 + 0.4 * (number + 1) / 16 + 1 / 32


def test_uniform_outputs_cost_the_logarithm_and_half_of_it(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("dinov2", "method.koleo_weight=0"))
    with torch.no_grad():
        for head in (method.head, method.patch_head, method.teacher_head.module, method.teacher_patch_head.module):
            head.weight.fill_(1.0)
    assert method.training_step(batch, 0).item() == pytest.approx(1.5 * math.log(24), rel=1e-5)


def test_codes_are_of_masked_patches_alone(tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding, or patches that are not masked, would take their share of the outputs."""
    method, batch = prepared(tiny_config("dinov2"))
    import selfsup.methods.dinov2 as module

    seen: list[tuple[int, ...]] = []
    original = module.sinkhorn
    monkeypatch.setattr(
        module, "sinkhorn", lambda scores, *a, **k: seen.append(tuple(scores.shape)) or original(scores, *a, **k)
    )
    masks = drawn_masks(method, monkeypatch, "spread_masks")
    method.training_step(batch, 0)
    assert seen == [(32, 24), (int(masks[0].sum()), 24)]


def test_the_gram_loss_holds_to_an_earlier_teacher_that_is_renewed_three_times(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(
        tiny_config("dinov2", "method.gram_weight=1", "method.gram_start_epoch=1", "method.gram_every_epochs=2")
    )
    epochs = method.trainer.fit_loop.epoch_progress.current
    renewed = []
    for epoch in range(1, 12):
        epochs.completed = epoch
        with torch.no_grad():
            for parameter in method.teacher.parameters():
                parameter.add_(1.0)
        before = method.gram_teacher.module.network.cls_token.clone()
        method.renew_gram_teacher()
        method.renew_gram_teacher()
        now = method.gram_teacher.module.network.cls_token
        if torch.equal(now, method.teacher.module.network.cls_token):
            renewed.append(epoch)
        else:
            assert torch.equal(now, before)
    assert renewed == [1, 3, 5, 7]


def test_before_its_epoch_the_gram_loss_counts_nothing(tiny_config: Callable[..., Any]) -> None:
    late, batch = prepared(tiny_config("dinov2", "method.gram_weight=1", "method.gram_start_epoch=1"))
    never, _ = prepared(tiny_config("dinov2"))
    never.load_state_dict(late.state_dict(), strict=False)
    assert torch.equal(late.training_step(batch, 0), never.training_step(batch, 0))


def test_defaults_are_the_authors() -> None:
    config = load_config(["method=dinov2", "augment.sizes=[224,96]"])
    method, optimizer = config.method, config.optimizer
    assert (method.output_dim, method.hidden_dim, method.bottleneck_dim) == (65536, 2048, 256)
    assert (method.koleo_weight, method.gram_weight, method.momentum) == (0.1, 0.0, 0.992)
    assert (method.mask_share, method.mask_ratios) == (0.5, [0.1, 0.5])
    assert (optimizer.lr, optimizer.scaling, optimizer.reference_batch) == (4e-3, "sqrt", 1024)
    assert (optimizer.layer_decay, optimizer.patch_embed_lr, optimizer.clip_by) == (0.9, 0.2, "module")
    assert (config.augment.recipe, config.augment.counts) == ("dinov2", [2, 8])
