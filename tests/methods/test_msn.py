"""MSN and PMSN by hand, and what implementations of them get wrong."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from test_ibot import entropy
from torch import Tensor, nn

from selfsup.config import load_config
from selfsup.errors import UserError
from selfsup.functional import kept_index, random_mask

TINY = [
    "backbone=vit_small",
    "backbone.kwargs.patch_size=8",
    "backbone.kwargs.embed_dim=16",
    "backbone.kwargs.depth=2",
    "backbone.kwargs.num_heads=2",
    "augment.sizes=[32,16]",
    "augment.counts=[2,2]",
    "method.prototypes=12",
    "method.hidden_dim=16",
    "method.output_dim=8",
]
# all crops of one size: timm resamples positions in float32, which a test of float64 sees
RANKS = [
    ["augment.sizes=[32,32]"],
    ["augment.sizes=[32,32]", "method.momentum=0.9", "method.prior_exponent=0.5", "method.sinkhorn_iterations=0"],
]


def class_token(backbone: Any, image: Tensor, kept: list[int]) -> Tensor:
    """Class token of one image ``[C,32,32]`` of which the network sees the patches of an index."""
    network = backbone.network
    kernel = network.patch_embed.proj
    patches = [image[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8] for r in range(4) for c in range(4)]
    embedded = [(kernel.weight * patches[n]).sum((1, 2, 3)) + kernel.bias + network.pos_embed[0, 1 + n] for n in kept]
    sequence = torch.stack([network.cls_token[0, 0] + network.pos_embed[0, 0], *embedded])
    return network.norm(network.blocks(sequence[None]))[0, 0]


def cosines(rows: Tensor, prototypes: Tensor) -> Tensor:
    return torch.stack([torch.stack([nn.functional.cosine_similarity(r, p, dim=0) for p in prototypes]) for r in rows])


@pytest.mark.parametrize("exponent", [0.0, 0.25])
def test_one_step_is_the_loop_in_value_and_gradient(exponent: float, tiny_config: Callable[..., Any]) -> None:
    overrides = ["batch_size=6", "method.prior_weight=0.7", f"method.prior_exponent={exponent}"]
    method, batch = prepared(tiny_config("msn", *overrides, "augment.counts=[3,2]"))
    method = method.double()
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    views = [view.image.double() for view in twin.views(batch.image, seed=twin_seed(method), index=batch.index)]
    kept = [kept_index(random_mask(method.draw(batch.index, v), (4, 4), 0.15)).tolist() for v in (1, 2)]
    assert {len(row) for view in kept for row in view} == {16 - round(0.15 * 16)}
    backbone, head = twin.teacher.module
    with torch.no_grad():
        wanted = head(torch.stack([class_token(backbone, image, list(range(16))) for image in views[0]]))
        scores = cosines(wanted, twin.prototypes.weight)
        codes = (scores / 0.1).softmax(1) ** 4
        codes = codes / codes.sum(1, keepdim=True)
        for _ in range(3):
            codes = codes / codes.sum(0)
            codes = codes / codes.sum(1, keepdim=True)
    # BatchNorm of the head sees the large anchors together, and the small ones together
    large = [class_token(twin.backbone, views[v][n], kept[v - 1][n]) for v in (1, 2) for n in range(6)]
    anchors = torch.cat([twin.head(torch.stack(large)), twin.head(twin.backbone(torch.cat(views[3:])))])
    logits = cosines(anchors, twin.prototypes.weight) / 0.1
    total = sum(entropy(codes[row % 6], logits[row]) for row in range(24)) / 24
    mean = logits.softmax(1).mean(0)
    prior = torch.arange(1, 13, dtype=torch.float64) ** -exponent
    total = total + 0.7 * (mean * (mean / (prior / prior.sum())).log()).sum()
    torch.testing.assert_close(loss, total, rtol=1e-9, atol=1e-9)
    loss.backward()
    total.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            assert ours.grad.ne(0).any(), name
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9, msg=name)
        else:
            assert ours.grad is None, name


def test_patches_are_left_out_of_the_large_anchors_alone(tiny_config: Callable[..., Any]) -> None:
    """Neither the target's nor a small crop's, whose prediction is what it is without anything left out."""
    method, batch = prepared(tiny_config("msn"))
    given: list[tuple[Tensor, Tensor]] = []
    original, whole = method.backbone.forward_tokens, []

    def watch(images: Tensor, *, keep: Tensor) -> Any:
        given.append((images, keep))
        return original(images, keep=keep)

    method.backbone.forward_tokens = watch
    method.backbone.register_forward_hook(lambda _module, inputs, _output: whole.append(tuple(inputs[0].shape)))
    method.teacher.module[0].register_forward_hook(lambda _module, inputs, _output: whole.append(inputs[0]))
    method.training_step(batch, 0)
    views = [view.image for view in method.views(batch.image, seed=twin_seed(method), index=batch.index)]
    assert torch.equal(given[0][0], views[1])
    assert given[0][1].shape == (16, 14)
    assert len({tuple(row) for row in given[0][1].tolist()}) > 8  # each image's own
    assert whole[0] == (32, 3, 16, 16)
    assert torch.equal(whole[1], views[0])


def test_uniform_scores_cost_the_logarithm_and_a_single_cluster_twice_of_it(tiny_config: Callable[..., Any]) -> None:
    """All prototypes alike: each assignment is even, which costs ln K and no more."""
    method, batch = prepared(tiny_config("msn"))
    with torch.no_grad():
        method.prototypes.weight.fill_(1.0)
    assert method.training_step(batch, 0).item() == pytest.approx(math.log(12), rel=1e-5)


def test_prototypes_learn_without_decay_and_whatever_their_length(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("msn"))
    groups = method.param_groups()
    assert groups[-1]["params"] == [method.prototypes.weight]
    assert groups[-1]["weight_decay"] == 0.0
    covered = [id(p) for group in groups for p in group["params"]]
    assert sorted(covered) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    loss = method.training_step(batch, 0)
    with torch.no_grad():
        method.prototypes.weight.mul_(torch.rand(12, 1) + 0.5)
    torch.testing.assert_close(method.training_step(batch, 0), loss)


def test_the_teacher_follows_along_a_line_that_ends_short_of_one(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("msn", "method.momentum=0.5"))
    method.total_steps = 8
    for done, expected in ((0, 0.5), (4, 0.7), (8, 0.9)):
        method.trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = done
        method.after_optimizer_step()
        assert method.steps_done == done
        assert method.teacher.momentum == pytest.approx(expected)
    assert method.evaluated_backbone is method.teacher.module[0]


def test_defaults_are_those_of_the_released_configuration() -> None:
    config = load_config(["method=msn", "augment.sizes=[224,96]"])
    method = config.method
    assert (method.prototypes, method.hidden_dim, method.output_dim, method.mask_ratio) == (1024, 2048, 256, 0.15)
    assert (method.temperature, method.sharpening, method.prior_weight, method.prior_exponent) == (0.1, 0.25, 1.0, 0.0)
    assert (method.momentum, method.sinkhorn_iterations) == (0.996, 3)
    assert (config.augment.recipe, config.augment.counts) == ("msn", [2, 10])
    prior = load_config(["method=pmsn"]).method
    assert (prior.prior_exponent, prior.sinkhorn_iterations) == (0.25, 0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("augment.counts=[1,2]", "augment.counts"),
        ("method.mask_ratio=0.01", "masks 0 of the 16 patches"),
        ("+backbone.kwargs={global_pool: avg, fc_norm: false}", "is not its class token"),
    ],
)
def test_mistakes_are_named(override: str, message: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message):
        tiny_method("msn", override)
