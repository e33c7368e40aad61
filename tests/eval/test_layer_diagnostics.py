"""The protocols that look into a network: layers, invariance, attention, CKA; and their pictures."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from measuring import evaluate
from PIL import Image
from tiny import resident
from torch import nn
from torch.nn import functional as F

from selfsup.augment import RECIPES, ViewGenerator
from selfsup.data.base import Splits
from selfsup.errors import UserError
from selfsup.eval import Encoder, cka, eval_config, extract_features, knn, read_results
from selfsup.eval.protocols.attention import attention_of
from selfsup.eval.protocols.invariance import operations, unchanged
from selfsup.eval.shown import similarities
from selfsup.eval.stages import stages
from selfsup.nn import BackboneConfig, build_backbone, projection_head
from selfsup.report import save, save_cka, similarity_picture
from selfsup.types import Normalization

PLAIN = Normalization((0.0,), (1.0,))
CONFIG = eval_config(knn={"k": [3], "temperatures": [0.1]}, batch_size=7, invariance={"images": 12}, figures=False)


def splits(labels=True, holdout=12, channels=3, size=16):
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(0, 3, (60,), generator=generator)
    coarse = torch.rand(60, channels, 4, 4, generator=generator) * 150
    images = F.interpolate(coarse, size=(size, size), mode="bilinear")
    images += 100 * (which[:, None, None, None] == torch.arange(size)[:, None] * 3 // size)
    data = resident(
        images.clamp(0, 255).to(torch.uint8),
        which if labels else None,
        name="bands",
        split="train",
        image_size=size,
        normalization=PLAIN,
    )
    part = torch.arange(60).split([60 - 12 - holdout, holdout, 12])
    train = data.subset(part[0])
    return Splits(train, train, data.subset(part[1]), data.subset(part[2]))


def resnet(seed=0):
    torch.manual_seed(seed)
    return build_backbone(BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1]), 3, PLAIN)


def vit(seed=0):
    torch.manual_seed(seed)
    config = BackboneConfig(
        "vit_tiny_patch16_224", kwargs={"img_size": 16, "patch_size": 4, "depth": 2, "embed_dim": 12, "num_heads": 3}
    )
    return build_backbone(config, 3, PLAIN)


def images_of(dataset):
    return dataset.read(torch.arange(len(dataset))).float() / 255


def test_stages_are_those_of_the_network():
    assert list(stages(resnet())) == ["act1", "layer1", "layer2", "layer3", "layer4"]
    assert list(stages(vit())) == ["blocks.0", "blocks.1"]
    convnet = build_backbone(BackboneConfig("convnet", width=4, blocks=[1, 2]), 3)
    assert [type(module) for module, _ in stages(convnet).values()] == [nn.ReLU] * 3
    assert list(stages(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))) == ["0", "1"]


def test_layer_features_are_the_parts_run_by_hand():
    data, backbone = splits().train, resnet()
    head = projection_head([32, 8, 5], batch_norm=True)
    head(torch.randn(20, 32))
    was_training = head.training
    found = Encoder(backbone, 7, progress=False).layers(data, head)
    assert head.training == was_training
    assert list(found) == ["act1", "layer1", "layer2", "layer3", "layer4", "backbone", "head.1", "head.2"]
    network = backbone.network.eval()
    head.eval()
    with torch.no_grad():
        x = network.act1(network.bn1(network.conv1(images_of(data))))
        for name in ("act1", "layer1", "layer2", "layer3", "layer4"):
            x = x if name == "act1" else getattr(network, name)(network.maxpool(x) if name == "layer1" else x)
            torch.testing.assert_close(found[name].features, x.mean((2, 3)), rtol=1e-4, atol=1e-5)
        h = x.mean((2, 3))
        torch.testing.assert_close(found["head.1"].features, head[2](head[1](head[0](h))), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["head.2"].features, head(h), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["backbone"].features, extract_features(backbone, data, progress=False).features)
    assert torch.equal(found["layer2"].labels, data.labels)
    assert not any(module._forward_hooks for module in network.modules()), "the hooks are gone"


def test_class_tokens_are_no_patches():
    backbone = vit()
    found = Encoder(backbone, progress=False).layers(splits().train)
    tokens = []
    handle = backbone.network.blocks[1].register_forward_hook(lambda m, i, o: tokens.append(o))
    with torch.no_grad():
        backbone.eval()(images_of(splits().train))
    handle.remove()
    torch.testing.assert_close(found["blocks.1"].features, tokens[0][:, 1:].mean(1), rtol=1e-4, atol=1e-5)


def test_layer_records_are_scored_on_the_holdout():
    parts, backbone = splits(), resnet()
    records = evaluate(backbone, parts, CONFIG, ["layers"], epoch=3)
    last = [r for r in records if r["layer"] == "backbone"]
    assert [(r["metric"], r["split"]) for r in last] == [("rank_me", "train"), ("top1", "holdout")]
    train, held = (extract_features(backbone, part, progress=False) for part in (parts.train, parts.holdout))
    assert last[1]["value"] == knn(train, held, k=(3,), temperature=0.1)[3]
    sigma = np.linalg.svd(train.features.double().numpy(), compute_uv=False)
    shares = sigma / sigma.sum() + 1e-7
    assert last[0]["value"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
    assert (last[0]["depth"], last[0]["dim"], last[0]["epoch"], last[1]["scored_images"]) == (5, 32, 3, 12)
    without = evaluate(backbone, splits(labels=False), CONFIG, ["layers"])
    assert {r["metric"] for r in without} == {"rank_me"}
    assert {r["split"] for r in evaluate(backbone, splits(holdout=0), CONFIG, ["layers"])} == {
        "train",
        "test",
    }


def test_each_recipe_does_one_thing():
    image = images_of(splits().train)[:8]
    simclr = RECIPES["simclr"][0][0]
    identity = ViewGenerator([unchanged(simclr)], [16], PLAIN)(image)[0].image
    torch.testing.assert_close(identity, image)
    view = {name: ViewGenerator([r], [16], PLAIN)(image)[0].image for name, r in operations(simclr).items()}
    torch.testing.assert_close(view["flip"], image.flip(3))
    torch.testing.assert_close(view["solarize"], torch.where(image >= 0.5, 1 - image, image))
    assert (view["gray"].std(1) < 1e-6).all()
    ratio = (view["brightness"] / image)[view["brightness"] < 0.999]
    assert ratio.std() > 0.05, "each image its own factor"
    for number in range(8):
        unclipped = view["brightness"][number] < 0.999
        assert (view["brightness"][number] / image[number])[unclipped & (image[number] > 0.05)].std() < 1e-4
    grey = (image * torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1)
    saturated = (view["saturation"] * torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1)
    inside = ((view["saturation"] > 0) & (view["saturation"] < 1)).all(1)
    torch.testing.assert_close(saturated[inside], grey[inside], rtol=1e-3, atol=2e-3)
    assert not (set(operations(simclr, channels=1)) & {"saturation", "hue", "gray"})


class Pixels(nn.Module):
    """Features whose behaviour under a mirror is known."""

    def __init__(self, mirrored):
        super().__init__()
        self.mirrored, self.unused = mirrored, nn.Conv2d(3, 1, 1)

    def forward(self, images):
        images = images.float() - 0.4
        return (images + images.flip(3)).flatten(1) if self.mirrored else images.flatten(1)


def values(records):
    return {(r["operation"], r["metric"]): r["value"] for r in records}


def test_invariance_and_equivariance_to_a_mirror_in_closed_form():
    symmetric = values(evaluate(Pixels(True), splits(), CONFIG, ["invariance"]))
    plain = values(evaluate(Pixels(False), splits(), CONFIG, ["invariance"]))
    assert symmetric["flip", "invariance"] == pytest.approx(1, abs=1e-5)
    assert symmetric["flip", "equivariance"] == pytest.approx(1, abs=1e-5)
    # a mirror is a permutation of the pixels: an orthogonal map, the same for all images
    assert plain["flip", "equivariance"] == pytest.approx(1, abs=1e-5)
    assert plain["flip", "invariance"] < 0.99
    assert plain["crop", "equivariance"] < 0.99
    assert plain["solarize", "invariance"] < plain["flip", "invariance"]


def test_invariance_records_are_the_loop():
    parts = splits()
    records = evaluate(Pixels(False), parts, CONFIG, ["invariance"], seed=4)
    image = images_of(parts.holdout)
    before = [row / np.linalg.norm(row) for row in (image - 0.4).flatten(1).double().numpy()]
    after = [row / np.linalg.norm(row) for row in (image.flip(3) - 0.4).flatten(1).double().numpy()]
    same = np.mean([a @ b for a, b in zip(before, after, strict=True)])
    other = np.mean([before[i] @ after[j] for i in range(12) for j in range(12) if i != j])
    found = values(records)
    assert found["flip", "cosine"] == pytest.approx(same, rel=1e-5)
    assert found["flip", "invariance"] == pytest.approx((same - other) / (1 - other), rel=1e-4)
    first = records[0]
    assert (first["split"], first["recipe"], first["images"]) == ("holdout", "simclr_small", 12)
    assert {metric for operation, metric in found if operation == "all"} > {"alignment", "lidar"}
    again = evaluate(Pixels(False), parts, CONFIG, ["invariance"], seed=4)
    assert values(again) == found


def test_equivariance_is_measured_with_one_operation_for_all_images():
    class Recorder(Pixels):
        def forward(self, images):
            self.seen.append(images.clone())
            return super().forward(images)

    network = Recorder(False)
    network.seen = []
    config = eval_config(batch_size=50, invariance={"images": 12})
    evaluate(network, splits(), config, ["invariance"])
    # unchanged; crop: own, four shared; mirror: own, one shared; brightness: own, four shared
    still, passes = network.seen[0], network.seen[8:13]
    factors = [(changed / still.clamp_min(1e-3)).flatten(1).median(1).values for changed in passes]
    assert factors[0].std() > 0.05
    # clipping at white changes the median of no image where the factor is below one
    darker = [f for f in factors[1:] if f.max() < 1]
    assert darker
    assert all(f.std() < 1e-3 for f in darker)
    assert len({round(f.min().item(), 3) for f in factors[1:]}) == 4


def test_invariance_of_a_collapsed_network_is_an_error():
    class Constant(Pixels):
        def forward(self, images):
            return torch.ones(len(images), 4) + self.unused.bias

    with pytest.raises(UserError, match="collapsed"):
        evaluate(Constant(False), splits(), CONFIG, ["invariance"])


def test_features_that_only_an_augmentation_breaks_are_an_error():
    class Fragile(Pixels):
        def forward(self, images):
            features = super().forward(images)
            self.calls = getattr(self, "calls", 0) + 1
            return features * float("nan") if self.calls > 20 else features

    with pytest.raises(UserError, match=r"augmented images of .* are NaN or infinite"):
        evaluate(Fragile(False), splits(), CONFIG, ["invariance"])


def test_attention_is_what_the_fused_kernel_uses():
    module = vit().network.blocks[0].attn.eval()
    nn.init.normal_(module.qkv.weight, std=0.6)
    tokens = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        value = module.qkv(tokens).reshape(2, 5, 3, 3, 4)[:, :, 2].transpose(1, 2)
        expected = module.proj((attention_of(module, tokens) @ value).transpose(1, 2).reshape(2, 5, 12))
        torch.testing.assert_close(module(tokens), expected)


def test_attention_of_a_network_that_looks_everywhere():
    backbone = vit()
    for block in backbone.network.blocks:
        nn.init.zeros_(block.attn.qkv.weight)
        nn.init.zeros_(block.attn.qkv.bias)
    records = evaluate(backbone, splits(), CONFIG, ["attention"], epoch=1)
    found = {(r["layer"], r["metric"]): r for r in records}
    place = [(y, x) for y in range(4) for x in range(4)]
    mean = np.mean([4 * np.hypot(a[0] - b[0], a[1] - b[1]) for a in place for b in place])
    for layer in ("blocks.0", "blocks.1"):
        distance = found[layer, "attention_distance"]
        assert distance["value"] == pytest.approx(mean, rel=1e-5)
        assert distance["per_head"] == pytest.approx([mean] * 3, rel=1e-5)
        assert found[layer, "attention_nmi"]["value"] == pytest.approx(0, abs=1e-5)
        offset = found[layer, "offset_share"]
        assert offset["per_head"] == pytest.approx([1 / 16] * 3), (
            "of equal keys the first: another offset for each query"
        )
        assert len(offset["offsets"]) == 3
        assert (layer, "object_iou") not in found, "there are no masks"
        curve = found[layer, "high_frequency"]
        assert len(curve["amplitude"]) == 3
        assert curve["value"] == curve["amplitude"][-1]
    with pytest.raises(UserError, match="choose a ViT"):
        evaluate(resnet(), splits(), CONFIG, ["attention"])
    # even attention: 60 % is held by the first ten of 16 patches, of which the upper half of the image has eight
    masks = torch.zeros(60, 16, 16, dtype=torch.uint8)
    masks[:, :8] = 3
    parts = splits()
    records = evaluate(backbone, replace(parts, train=parts.train.with_masks(masks)), CONFIG, ["attention"])
    for record in (r for r in records if r.metric == "object_iou"):
        assert record["per_head"] == pytest.approx([0.8] * 3)
    assert sum(r.metric == "object_iou" for r in records) == 2


def test_cka_of_networks(tmp_path):
    def encoder(seed=0):
        return Encoder(resnet(seed), progress=False)

    data = splits().train
    table = cka({"a": encoder(0), "same": encoder(0), "other": encoder(5)}, data)
    assert table.names == ("a", "same", "other")
    assert table.values[0, 1].item() == pytest.approx(1, abs=1e-5)
    assert table.values[0, 2] < 0.999
    assert torch.equal(table.values, table.values.T)
    save_cka(table, tmp_path)
    rows = list(csv.reader((tmp_path / "cka.csv").open()))
    assert rows[0] == ["", "a", "same", "other"]
    assert float(rows[3][1]) == pytest.approx(table.values[2, 0].item())
    assert (tmp_path / "cka.png").exists()
    layered = cka({"a": encoder(0), "b": encoder(5)}, data, layers=True)
    assert len(layered.names) == 12
    assert "a: layer2" in layered.names
    with pytest.raises(UserError, match="two runs"):
        cka({"a": encoder()}, data)


def test_everything_goes_on_without_what_cannot_run(tmp_path):
    with pytest.warns(UserWarning, match=r"Left out: attention \(.*vision transformer.*knn, .*no label"):
        records = evaluate(resnet(), splits(labels=False), CONFIG, run_dir=tmp_path)
    found = {r["protocol"] for r in records}
    assert found >= {"diagnostics", "layers", "invariance", "dense_alignment", "shortcuts"}
    assert not found & {"attention", "knn", "linear_probe", "concentration"}
    with pytest.raises(UserError, match="no network"):
        evaluate(None, splits(), CONFIG, ["layers"])
    (rank,) = [r for r in read_results(tmp_path) if (r["protocol"], r["metric"]) == ("diagnostics", "rank_me")]
    features = extract_features(resnet(), splits().train, progress=False).features.double().numpy()
    sigma = np.linalg.svd(features, compute_uv=False)
    spectrum = rank["spectrum"]
    assert spectrum["rank"][0] == 1
    assert spectrum["rank"][-1] == len(sigma)
    expected = [sigma[place - 1] / sigma[0] for place in spectrum["rank"]]
    assert spectrum["value"] == pytest.approx(expected, abs=1e-5)


def test_pictures_are_drawn_into_the_run(tmp_path):
    config = eval_config(knn={"k": [3]}, invariance={"images": 6})
    evaluate(vit(), splits(), config, ["diagnostics", "layers", "invariance", "attention"], run_dir=tmp_path)
    drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert drawn >= {"spectrum", "layers", "invariance", "attention", "similarity"}


def test_the_similarity_is_red_where_both_images_have_the_same(tmp_path):
    class Means(nn.Module):
        """Colour less its mean over the channels, on a grid of 4 × 4."""

        in_channels = 3

        def forward_dense(self, images):
            pooled = F.avg_pool2d(images, 4)
            return pooled - pooled.mean(1, keepdim=True)

    images = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)
    images[:, 0, :8, :8] = 255  # the one thing they share: red at the upper left
    data = resident(images, None, name="two", split="train", image_size=16, normalization=PLAIN)
    maps = similarities(Encoder(Means(), progress=False), data, torch.tensor([[0, 1]]), noisy=2, masks=20)
    path = save(similarity_picture(maps), tmp_path / "similarity.png")
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    wide = picture.shape[1] // 6
    panel = picture[:, wide : 2 * wide]  # the exact map of the first image
    red = (panel[..., 0] - panel[..., 2]) > 60
    rows, columns = np.nonzero(red)
    assert len(rows) > 0.1 * red.size / 4
    assert rows.max() < 0.62 * picture.shape[0]
    assert columns.max() < 0.62 * wide
    with pytest.raises(UserError, match="forward_dense"):
        similarities(Encoder(nn.Linear(2, 2)), data, torch.tensor([[0, 1]]))
