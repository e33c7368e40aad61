"""Readouts of tokens by hand, and that each is judged by the classifiers that judge any feature."""

from __future__ import annotations

import pytest
import torch
from measuring import changed, evaluate
from tiny import resident
from torch import nn
from torch.nn import functional as F

from selfsup.data.base import Splits
from selfsup.errors import UserError
from selfsup.eval import FeatureSet, eval_config, knn, linear_probe
from selfsup.eval.protocols.token_readouts import readouts
from selfsup.eval.tokens import TokenSummaries
from selfsup.nn.backbone import BackboneConfig
from selfsup.nn.building import build_backbone
from selfsup.report import Evaluated
from selfsup.report.charts.token_readouts import token_readouts_of_one
from selfsup.types import Normalization

PLAIN = Normalization((0.5,) * 3, (0.25,) * 3)
CONFIG = eval_config(
    knn={"k": [3], "temperatures": [0.1]},
    linear_probe={"learning_rates": [0.1, 0.01], "weight_decays": [0.0], "epochs": 5, "batch_size": 16},
    batch_size=16,
)


def splits(count=70, size=16, labels=True, holdout=True):
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(0, 3, (count,), generator=generator)
    images = torch.randint(0, 150, (count, 3, size, size), generator=generator)
    images += 60 * (which[:, None, None, None] == torch.arange(3)[:, None, None])
    data = resident(
        images.to(torch.uint8), which if labels else None, name="tints", split="train", image_size=size,
        normalization=PLAIN,
    )  # fmt: skip
    part = torch.arange(count).split([40, 15, 15])
    train = data.subset(part[0])
    return Splits(train, train, data.subset(part[1] if holdout else part[1][:0]), data.subset(part[2]))


def vit(depth=3, **kwargs):
    torch.manual_seed(0)
    own = {"img_size": 16, "patch_size": 4, "depth": depth, "embed_dim": 12, "num_heads": 3} | kwargs
    return build_backbone(BackboneConfig("vit_tiny_patch16_224", kwargs=own), 3, PLAIN)


def by_hand(backbone, data, blocks):
    """Every readout of every image: the blocks run one by one, then the final norm."""
    network = backbone.network.eval()
    images = (data.read(torch.arange(len(data))).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        x = network.norm_pre(network._pos_embed(network.patch_embed(images)))
        outputs = []
        for block in network.blocks:
            x = block(x)
            outputs.append(network.norm(x))
    prefix = network.num_prefix_tokens
    classes = [x[:, 0] for x in outputs[-blocks:]]
    means = [x[:, prefix:].mean(1) for x in outputs[-blocks:]]
    return {
        "class": [classes[-1]],
        "patches": [means[-1]],
        "class+patches": [classes[-1], means[-1]],
        f"class_last_{blocks}": classes,
        f"patches_last_{blocks}": means,
    }


@pytest.mark.parametrize("kwargs", [{}, {"reg_tokens": 2}, {"global_pool": "avg", "fc_norm": False}])
def test_every_readout_is_judged_as_a_feature_of_its_own(kwargs):
    backbone, parts = vit(**kwargs), splits()
    config = changed(CONFIG, token_readouts={"blocks": 2})
    records = evaluate(backbone, parts, config, ["token_readouts"], seed=3)
    made = {name: by_hand(backbone, getattr(parts, name), 2) for name in ("train", "holdout", "test")}
    assert [(r["readout"], r["classifier"]) for r in records] == [
        (name, kind) for name in made["train"] for kind in ("knn", "linear")
    ]
    for knn_record, linear_record in zip(records[::2], records[1::2], strict=True):
        sets = {}
        for part, found in made.items():
            data = getattr(parts, part)
            pieces = found[knn_record["readout"]]
            sets[part, "knn"] = FeatureSet(
                torch.cat([F.normalize(p, dim=1) for p in pieces], 1), data.labels, data.index
            )
            sets[part, "linear"] = FeatureSet(torch.cat(pieces, 1), data.labels, data.index)
        expected = [knn(sets["train", "knn"], sets[part, "knn"], 3, 0.1)[3] for part in ("test", "holdout")]
        assert [knn_record["value"], knn_record["holdout_accuracy"]] == expected
        result = linear_probe(
            sets["train", "linear"], sets["test", "linear"], holdout=sets["holdout", "linear"],
            learning_rates=[0.1, 0.01], weight_decays=[0.0], epochs=5, batch_size=16, seed=3, progress=False,
        )  # fmt: skip
        assert linear_record["value"] == pytest.approx(result.accuracy)
        assert linear_record["holdout_accuracy"] == pytest.approx(result.chosen.holdout_accuracy)
        assert linear_record["dim"] == knn_record["dim"] == 12 * len(pieces)
        assert (linear_record["split"], linear_record["selected_on"]) == ("test", "holdout")
    assert token_readouts_of_one(Evaluated(records, {})) is not None


def test_without_a_class_token_the_patches_are_read_and_few_blocks_are_all():
    backbone = vit(class_token=False, global_pool="avg", fc_norm=False)
    records = evaluate(backbone, splits(holdout=False), CONFIG, ["token_readouts"])
    assert list(dict.fromkeys(r["readout"] for r in records)) == ["patches", "patches_last_3"]
    assert "holdout_accuracy" not in records[0]
    assert records[1]["selected_on"] == "10% of train (4 images)"
    one = evaluate(vit(depth=1), splits(), CONFIG, ["token_readouts"])
    assert list(dict.fromkeys(r["readout"] for r in one)) == ["class", "patches", "class+patches"]


def test_summaries_come_apart_as_they_were_put_together():
    summaries = TokenSummaries(vit(), 2)
    features = torch.arange(2 * 48.0).view(2, 48)
    found = readouts(summaries, features)
    assert torch.equal(found["class"].flatten(1), features[:, 12:24])
    assert torch.equal(found["patches"].flatten(1), features[:, 36:])
    assert torch.equal(found["class_last_2"].flatten(1), features[:, :24])
    assert torch.equal(found["patches_last_2"].flatten(1), features[:, 24:])


def test_few_training_images_are_spaced_evenly():
    config = changed(CONFIG, token_readouts={"images": 20})
    records = evaluate(vit(), splits(), config, ["token_readouts"])
    assert {r["train_images"] for r in records} == {20}


def test_other_networks_and_data_are_refused():
    resnet = build_backbone(BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1]), 3, PLAIN)
    for network, name in ((resnet, "ResNet"), (nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), "Sequential")):
        with pytest.raises(UserError, match=f"{name} is none"):
            evaluate(network, splits(), CONFIG, ["token_readouts"])
    with pytest.raises(UserError, match="label"):
        evaluate(vit(), splits(labels=False), CONFIG, ["token_readouts"])
