"""DINOv2's linear grid: each classifier is what torch's own SGD gives for it alone; choice, crops and refusals."""

from __future__ import annotations

import math

import pytest
import torch
from measuring import changed, evaluate
from test_token_readouts import by_hand, splits, vit
from torch import nn
from torch.nn import functional as F

from selfsup.errors import UserError
from selfsup.eval import Encoder, eval_config
from selfsup.eval.protocols.linear_grid import (
    LinearGridSettings,
    RatesTogether,
    grid_feature,
    linear_grid,
)
from selfsup.eval.tokens import TokenSummaries
from selfsup.nn.backbone import BackboneConfig
from selfsup.nn.building import build_backbone

RATES = [0.5, 0.05, 1e-6]


def test_classifiers_together_are_each_alone():
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(10, 5, generator=generator), torch.randint(0, 3, (10,), generator=generator)
    together = RatesTogether(5, 3, RATES, 7, torch.device("cpu"))
    alone = []
    for _ in RATES:
        layer = nn.Linear(5, 3)
        with torch.no_grad():
            layer.weight.copy_(together.weight[0].T)
            layer.bias.zero_()
        alone.append(layer)
    assert 0.003 < float(together.weight.std()) < 0.03
    optimizers = [
        torch.optim.SGD(one.parameters(), lr=rate, momentum=0.9) for one, rate in zip(alone, RATES, strict=True)
    ]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(one, 8, eta_min=0) for one in optimizers]
    for step in range(8):
        rows = torch.randperm(10, generator=generator)[:6]
        together.step(inputs[rows], targets[rows], 0.5 * (1 + math.cos(math.pi * step / 8)))
        for layer, optimizer, schedule in zip(alone, optimizers, schedules, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(layer(inputs[rows]), targets[rows]).backward()
            optimizer.step()
            schedule.step()
    for place, layer in enumerate(alone):
        torch.testing.assert_close(together.weight[place].T, layer.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together.bias[place, 0], layer.bias, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together.logits(inputs)[place], layer(inputs), rtol=1e-5, atol=1e-6)


def test_a_feature_is_class_tokens_in_order_and_the_mean_of_the_last_patches():
    backbone, data = vit(), splits().train
    summaries = TokenSummaries(backbone, 3)
    made = by_hand(backbone, data, 3)
    found = Encoder(summaries, 16, progress=False).features(data).features
    for blocks in (1, 2, 3):
        pieces = made["class_last_3"][-blocks:]
        for mean in (False, True):
            expected = torch.cat([*pieces, *(made["patches"] if mean else [])], 1)
            torch.testing.assert_close(grid_feature(summaries, found, blocks, mean), expected, rtol=1e-4, atol=1e-5)


def test_a_grid_is_many_trainings_and_the_best_on_the_holdout_is_tested():
    backbone, parts = vit(), splits()
    settings = LinearGridSettings([2.0, 0.5], [1, 2], epochs=6, batch_size=16, augment=False)
    encoder = Encoder(backbone, 16, progress=False)
    found = linear_grid(encoder, backbone, parts.train, parts.test, settings, holdout=parts.holdout, seed=2)
    assert len(found.settings) == 8
    for one in found.settings:  # each alone, from the grid of one
        own = LinearGridSettings([one.learning_rate], [one.blocks], epochs=6, batch_size=16, augment=False)
        alone = linear_grid(encoder, backbone, parts.train, parts.test, own, holdout=parts.holdout, seed=2)
        (same,) = [s for s in alone.settings if s.mean_of_patches == one.mean_of_patches]
        assert same.holdout_accuracy == one.holdout_accuracy
        assert same.holdout_loss == pytest.approx(one.holdout_loss, rel=1e-5)
    best = max(found.settings, key=lambda s: (s.holdout_accuracy, -s.holdout_loss))
    assert found.chosen == best
    # the rate of a batch of 16 is a sixteenth of the one named
    summaries = TokenSummaries(backbone, best.blocks)
    inputs = {name: Encoder(summaries, 16, progress=False).features(getattr(parts, name)) for name in ("train", "test")}
    features = {
        name: grid_feature(summaries, p.features, best.blocks, best.mean_of_patches) for name, p in inputs.items()
    }
    head = RatesTogether(features["train"].shape[1], 3, [best.learning_rate / 16], 2, torch.device("cpu"))
    from selfsup.data.loader import epoch_order

    step = 0
    for epoch in range(6):
        for rows in torch.split(epoch_order(40, 2, epoch), 16):
            factor = 0.5 * (1 + math.cos(math.pi * step / 18))
            head.step(features["train"][rows], parts.train.labels[rows], factor)
            step += 1
    right = head.logits(features["test"])[0].argmax(1) == parts.test.labels
    assert found.accuracy == right.double().mean().item()
    assert found.confusion.sum() == 15


def test_the_protocol_sees_new_crops_in_every_epoch_and_says_what_it_did():
    class Watched(nn.Module):
        seen: list = []  # noqa: RUF012

        def forward(self, images):
            self.seen.append(images.clone())
            return images

    backbone, watch = vit(), Watched()
    backbone.network.patch_embed.register_forward_pre_hook(lambda module, inputs: (watch(inputs[0]),))
    own = {"learning_rates": [0.5], "blocks": [1], "epochs": 2, "batch_size": 64}
    (record,) = evaluate(backbone, splits(), eval_config(linear_grid=own), ["linear_grid"])
    assert (record["split"], record["selected_on"], record["probe_protocol"]) == ("test", "holdout", "dinov2")
    assert (record["grid"]["mean_of_patches"], record["grid"]["augment"][:6]) == ([False, True], "random")
    assert record["chosen"]["learning_rate"] == 0.5
    assert len(record["settings"]) == 2
    sizes = [len(images) for images in watch.seen]
    assert sizes == [40, 40, 15, 15]
    order = [images.flatten(1).sum(1).sort().values for images in watch.seen[:2]]
    assert not torch.allclose(*order), "the crops of the second epoch are others"


def test_what_has_no_grid_is_refused():
    parts = splits()
    resnet = build_backbone(BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1]), 3, parts.train.normalization)
    with pytest.raises(UserError, match="ResNet is none"):
        evaluate(resnet, parts, eval_config(), ["linear_grid"])
    with pytest.raises(UserError, match=r"4 of a network with 3 blocks; set \[1,3\]"):
        evaluate(vit(), parts, eval_config(), ["linear_grid"])
    config = eval_config(linear_grid={"blocks": [1]})
    with pytest.raises(UserError, match="no class token"):
        evaluate(vit(class_token=False, global_pool="avg", fc_norm=False), parts, config, ["linear_grid"])
    with pytest.raises(UserError, match="at least one value each"):
        evaluate(vit(), parts, changed(config, linear_grid={"learning_rates": []}), ["linear_grid"])
