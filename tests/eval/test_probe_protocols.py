import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from measuring import changed, evaluate
from tiny import resident
from torch import nn

from selfsup.augment import ViewGenerator, ViewRecipe, fold_in
from selfsup.data.base import Read, Splits
from selfsup.data.loader import epoch_order
from selfsup.data.resident import ResidentDataset
from selfsup.errors import UserError
from selfsup.eval import (
    PROBE_PROTOCOLS,
    PROTOCOLS,
    ChosenFeatures,
    Encoder,
    FineTuneSettings,
    ProbeProtocol,
    choice_splits,
    eval_config,
    extract_features,
    extract_splits,
    fine_tune,
    labelled_positions,
    linear_probe,
    logistic_probe,
    paper_probe,
    read_results,
    ridge_probe,
)
from selfsup.eval.protocols import linear_probe as linear_probe_file
from selfsup.eval.protocols.fine_tune import Classifier
from selfsup.eval.published import build_probe_optimizer, linear_layer, schedule_factor
from selfsup.eval.tuning import layer_groups
from selfsup.nn import BackboneConfig, build_backbone
from selfsup.types import Normalization

STATISTICS = Normalization((0.3,), (0.2,))
CONFIG = eval_config(
    linear_probe={"learning_rates": [0.1, 0.01], "weight_decays": [0.0], "epochs": 2},
    logistic={"c": [0.01, 1.0]},
    few_shot={"ways": 3, "shots": [1, 3], "queries": 2, "episodes": 10},
    fine_tune={"epochs": 2, "batch_size": 16},
    batch_size=16,
    figures=False,
)


def pixel_splits(parts):
    return extract_splits(Encoder(None), parts)


def dataset(count=90, seed=0, labels=True, contrast=150):
    """Bright horizontal bands whose place is the class; flips and crops of most of the image keep it."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(0, 3, (count,), generator=generator)
    images = torch.randint(0, 60, (count, 1, 9, 9), generator=generator)
    images += contrast * (which[:, None, None, None] == torch.arange(9)[:, None] // 3)
    return resident(
        images.to(torch.uint8),
        which if labels else None,
        name="bands",
        split="train",
        image_size=9,
        normalization=STATISTICS,
        classes=("up", "middle", "down"),
    )


def splits(**settings):
    data = dataset(**settings)
    train, held, test = (data.subset(part) for part in torch.arange(90).split([50, 20, 20]))
    return Splits(train, train, held, test)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(81, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, images):
        return self.layers(images)


# labels and seeds


def test_a_balanced_subset_has_the_same_number_of_every_class():
    labels = torch.tensor([7] * 500 + [3] * 400 + [11] * 99 + [20])
    chosen = labelled_positions(labels, 0.1, seed=0)
    counts = {label: int((labels[chosen] == label).sum()) for label in (7, 3, 11, 20)}
    assert counts == {7: 25, 3: 25, 11: 25, 20: 1}, "round(0.1 · 1000 / 4), or all there are"
    assert len(set(chosen.tolist())) == len(chosen)
    assert torch.equal(chosen, labelled_positions(labels, 0.1, seed=0))
    assert not torch.equal(chosen, labelled_positions(labels, 0.1, seed=1))
    assert set(chosen.tolist()) <= set(labelled_positions(labels, 0.3, seed=0).tolist())
    assert torch.equal(labelled_positions(labels, 1.0, seed=0), torch.arange(1000))
    assert len(labelled_positions(labels, 1e-6, seed=0)) == 4, "at least one of each"
    some = torch.tensor([-1, 5, -1, 7])
    assert labelled_positions(some, 1.0, seed=0).tolist() == labelled_positions(some, 0.9, seed=0).tolist() == [1, 3]
    with pytest.raises(UserError, match="none of the images has a label"):
        labelled_positions(torch.tensor([-1, -1]), 1.0, seed=0)
    for fraction in (0.0, 1.5):
        with pytest.raises(UserError, match=r"eval\.label_fraction"):
            labelled_positions(labels, fraction, seed=0)


def test_few_labels_are_all_that_the_probe_trains_on():
    features = pixel_splits(splits())
    config = changed(CONFIG, label_fraction=0.2)
    (record,) = evaluate(None, splits(), config, ["linear_probe"], seed=3)
    chosen = labelled_positions(features.train.labels, 0.2, 3)
    few = type(features.train)(
        features.train.features[chosen], features.train.labels[chosen], features.train.index[chosen]
    )
    alone = linear_probe(
        few,
        features.test,
        holdout=features.holdout,
        learning_rates=[0.1, 0.01],
        weight_decays=[0.0],
        epochs=2,
        seed=3,
        progress=False,
    )
    assert record["value"] == alone.accuracy
    assert record["chosen"]["holdout_loss"] == alone.chosen.holdout_loss
    assert (record["label_fraction"], record["labelled_images"], record["primary"]) == (0.2, 9, False)


def test_mean_and_deviation_over_seeds():
    parts = splits(contrast=15)
    config = changed(CONFIG, label_fraction=0.1)
    alone = [evaluate(None, parts, config, ["linear_probe"], seed=seed)[0] for seed in (4, 5, 6)]
    (record,) = evaluate(None, parts, changed(config, seeds=3), ["linear_probe"], seed=4)
    values = [one["value"] for one in alone]
    assert len(set(values)) > 1, "otherwise this shows nothing"
    assert record["values"] == values
    mean = sum(values) / 3
    assert record["value"] == pytest.approx(mean)
    assert record["std"] == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 2))
    assert record["seeds"] == [4, 5, 6]
    assert record["chosen"] == alone[0]["chosen"]
    for label in ("0", "1", "2"):
        assert record["per_class"][label] == pytest.approx(sum(one["per_class"][label] for one in alone) / 3)
    counts = [torch.tensor(one["confusion"]["counts"]) for one in alone]
    assert record["confusion"] == {"labels": [0, 1, 2], "counts": sum(counts).tolist()}
    assert sum(counts).sum() == 60
    with pytest.raises(UserError, match=r"eval\.seeds"):
        evaluate(None, parts, changed(config, seeds=0), ["linear_probe"])


# features to choose from


def test_class_tokens_of_the_last_blocks():
    torch.manual_seed(0)
    config = BackboneConfig("vit_tiny_patch16_224", kwargs={"img_size": 32, "patch_size": 8, "depth": 3})
    backbone = build_backbone(config, 3).eval()
    images = torch.randn(2, 3, 32, 32)
    chosen = ChosenFeatures(backbone, ["last_2", "pooled", "last_1_mean"])
    with torch.no_grad():
        found = chosen(images)
        layers = backbone.network.get_intermediate_layers(images, n=2, return_prefix_tokens=True, norm=True)
        pooled = backbone(images)
    (_, before_class), (last, last_class) = layers
    two = torch.cat([before_class[:, 0], last_class[:, 0]], 1)
    one = torch.cat([last_class[:, 0], last.mean(1)], 1)
    assert chosen.widths == [384, 192, 384]
    torch.testing.assert_close(found, torch.cat([two, pooled, one], 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[:, 192:384], pooled, rtol=1e-5, atol=1e-5)  # a ViT pools by its class token


@pytest.mark.parametrize("own", [{}, {"class_token": False}, {"class_token": False, "reg_tokens": 2}])
def test_means_of_patch_tokens_where_the_feature_is_no_class_token(own):
    torch.manual_seed(0)
    kwargs = {"img_size": 32, "patch_size": 8, "depth": 3, "global_pool": "avg", "fc_norm": False, **own}
    backbone = build_backbone(BackboneConfig("vit_tiny_patch16_224", kwargs=kwargs), 3).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = ChosenFeatures(backbone, ["last_2", "last_1_mean", "pooled"])(images)
        before, last = backbone.network.get_intermediate_layers(images, n=2, norm=True)
    expected = torch.cat([before.mean(1), last.mean(1), last.mean(1), last.mean(1)], 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_stages_of_a_convolutional_network():
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig("resnet", width=4, blocks=[1, 1, 1, 1]), 1).eval()
    images = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        found = ChosenFeatures(backbone, ["last_2"])(images)
        network = backbone.network
        x = network.layer2(network.layer1(network.maxpool(network.act1(network.bn1(network.conv1(images))))))
        third = network.layer3(x)
        fourth = network.layer4(third)
    torch.testing.assert_close(found, torch.cat([third.mean((2, 3)), fourth.mean((2, 3))], 1))


def test_the_choice_of_features_is_made_on_the_holdout(monkeypatch):
    parts = pixel_splits(splits())
    noise = torch.Generator().manual_seed(1)

    def noisy(part):
        return replace(part, features=torch.randn(len(part), 5, generator=noise))

    bad = replace(parts, train=noisy(parts.train), holdout=noisy(parts.holdout), test=noisy(parts.test))
    for names in (("bad", "good"), ("good", "bad")):
        named = {name: {"bad": bad, "good": parts}[name] for name in names}
        monkeypatch.setattr(linear_probe_file, "choice_splits", lambda *_, named=named: named)
        config = changed(CONFIG, linear_probe={"features": list(names)})
        (record,) = evaluate(nn.Identity(), splits(), config, ["linear_probe"])
        assert record["chosen"]["features"] == "good"
        assert [s["features"] for s in record["settings"]] == [names[0]] * 2 + [names[1]] * 2
        (alone,) = evaluate(None, splits(), CONFIG, ["linear_probe"])
        assert record["value"] == alone["value"]
        assert record["grid"]["choices"] == list(names)


def test_choices_are_extracted_together_and_told_apart():
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig("convnet", width=4, blocks=[1, 1]), 1, STATISTICS)
    found = choice_splits(Encoder(backbone, 16, progress=False), splits(), ["last_2", "pooled"])
    assert found["last_2"].how["dim"] == 12
    pooled = extract_features(backbone, splits().test, progress=False)
    torch.testing.assert_close(found["pooled"].test.features, pooled.features)
    torch.testing.assert_close(found["last_2"].test.features[:, 4:], pooled.features)
    for choice in ("last", "last_0", "last_3", "first_1"):
        with pytest.raises(UserError, match=r"eval\.linear_probe\.features"):
            choice_splits(Encoder(backbone, progress=False), splits(), [choice])
    config = changed(CONFIG, linear_probe={"features": ["pooled", "last_2"]})
    (record,) = evaluate(backbone, splits(), config, ["linear_probe"])
    assert record["grid"]["choices"] == ["pooled", "last_2"]


# the papers' protocols


@pytest.mark.parametrize(
    "protocol",
    [
        ProbeProtocol("nesterov", 0.5, 16, 5, 1e-2, scaled=True),
        ProbeProtocol("sgd", 3.0, 16, 5, schedule="steps"),
        ProbeProtocol("adam", 0.01, 32, 5, 1e-3, schedule="exponential", augment=False),
    ],
)
def test_a_papers_protocol_is_this_loop(protocol):
    network, parts = Network(), splits()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = paper_probe(Encoder(network, 7, progress=False), parts.train, parts.test, protocol, seed=2)
    assert network.training, "as it was"
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])

    network.eval()
    head = nn.Linear(8, 3)
    with torch.no_grad():
        head.weight.copy_(0.01 * torch.randn(3, 8, generator=torch.Generator().manual_seed(2)))
        head.bias.zero_()
    rate = protocol.learning_rate * (16 / 256 if protocol.scaled else 1)
    if protocol.optimizer == "adam":
        optimizer = torch.optim.Adam(head.parameters(), rate, weight_decay=protocol.weight_decay)
    else:
        nesterov = protocol.optimizer == "nesterov"
        optimizer = torch.optim.SGD(head.parameters(), rate, 0.9, 0, protocol.weight_decay, nesterov=nesterov)
    a_step = -(-50 // protocol.batch_size)
    curves = {
        "cosine": lambda t: (1 + math.cos(math.pi * t / (5 * a_step))) / 2,
        "steps": lambda t: 0.1 ** sum(t >= a_step * drop for drop in (3, 4)),  # 60 and 80 % of five epochs
        "exponential": lambda t: math.exp(math.log(1e-4) * t / (5 * a_step)),
    }
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, curves[protocol.schedule])
    views = ViewGenerator([ViewRecipe(jitter_p=0, gray_p=0)], [9], STATISTICS)
    for a_epoch in range(5):
        for positions in epoch_order(50, 2, a_epoch).split(protocol.batch_size):
            images, index = parts.train.read(positions), parts.train.index[positions]
            inputs = views(images, fold_in(2, a_epoch), index)[0].image
            if not protocol.augment:
                inputs = (images.float() / 255 - 0.3) / 0.2
            with torch.no_grad():
                features = network(inputs)
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(features), parts.train.labels[positions]).backward()
            optimizer.step()
            schedule.step()
    torch.testing.assert_close(found.classifier.weight, head.weight.detach().T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.classifier.bias, head.bias.detach(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        logits = head(network((parts.test.read(torch.arange(20)).float() / 255 - 0.3) / 0.2))
    assert found.accuracy == pytest.approx((logits.argmax(1) == parts.test.labels).double().mean().item())


def test_images_that_cannot_be_decoded_leave_the_labels_of_the_others_in_place():
    class Damaged(ResidentDataset):
        def read_decodable(self, positions):
            return Read(self.read(positions), self.index[positions] % 5 != 2)

    network, whole = Network(), dataset(40)
    broken = Damaged(whole.read(torch.arange(40)), whole.labels, whole.facts)
    protocol = ProbeProtocol("adam", 0.01, 8, 5, augment=False)
    kept = whole.subset((whole.index % 5 != 2).nonzero().flatten())
    encoder = Encoder(network, progress=False)
    found, expected = (paper_probe(encoder, part, dataset(30, 1), protocol) for part in (broken, kept))
    torch.testing.assert_close(found.classifier.weight, expected.classifier.weight)


def test_the_papers_settings_are_those_of_the_papers():
    table = {  # optimiser, rate, scaled by the batch, batch, epochs, decay
        "simclr": ("nesterov", 0.1, True, 4096, 90, 0),
        "moco": ("sgd", 30, False, 256, 100, 0),
        "moco_v3": ("sgd", 0.1, True, 1024, 90, 0),
        "moco_v3_vit": ("sgd", 3, True, 1024, 90, 0),
        "simsiam": ("lars", 0.1, True, 4096, 90, 0),
        "swav": ("sgd", 0.3, False, 256, 100, 1e-6),
        "barlow_twins": ("sgd", 0.3, False, 256, 100, 1e-6),
        "vicreg": ("sgd", 0.02, False, 256, 100, 1e-6),
        "dino": ("sgd", 0.001, True, 1024, 100, 0),
        "dino_vit_base": ("sgd", 0.001, True, 1024, 100, 0),
        "wmse": ("adam", 0.01, False, 1000, 500, 5e-6),
    }
    for name, expected in table.items():
        p = PROBE_PROTOCOLS[name]
        assert (p.optimizer, p.learning_rate, p.scaled, p.batch_size, p.epochs, p.weight_decay) == expected
    assert schedule_factor("exponential", 1.0) * PROBE_PROTOCOLS["wmse"].learning_rate == pytest.approx(1e-6)
    assert not PROBE_PROTOCOLS["wmse"].augment
    features = {name: PROBE_PROTOCOLS[name].transformer_features for name in ("moco_v3_vit", "dino", "dino_vit_base")}
    assert features == {"moco_v3_vit": "pooled", "dino": "last_4", "dino_vit_base": "last_1_mean"}


def test_the_simsiam_probe_steps_as_larc_does():
    """Weight and bias in a loop over their numbers: adapted without decay, and a bias of zeros as plain SGD."""
    head = linear_layer(5, 3, seed=0).double()
    optimizer = build_probe_optimizer(PROBE_PROTOCOLS["simsiam"], head, 1.6)
    values = {name: p.detach().flatten().tolist() for name, p in head.named_parameters()}
    buffers = {name: [0.0] * len(value) for name, value in values.items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        features = torch.randn(7, 5, generator=generator, dtype=torch.float64)
        head.zero_grad()
        nn.functional.cross_entropy(head(features), torch.arange(7) % 3).backward()
        for name, p in head.named_parameters():
            gradient = p.grad.flatten().tolist()
            length = math.sqrt(sum(w * w for w in values[name]))
            ratio = 0.001 * length / (math.sqrt(sum(g * g for g in gradient)) + 1e-8) if length > 0 else 1.0
            assert ratio != 1.0 or (name, step) == ("bias", 0)
            buffers[name] = [0.9 * b + ratio * g for b, g in zip(buffers[name], gradient, strict=True)]
            values[name] = [w - 1.6 * b for w, b in zip(values[name], buffers[name], strict=True)]
        optimizer.step()
        for name, p in head.named_parameters():
            expected = torch.tensor(values[name], dtype=torch.float64).view_as(p)
            torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-15)


def test_the_page_names_every_protocol_paper_and_diagnostic():
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text("utf-8")
    metrics = ("uniformity", "alignment", "tolerance", "feature_std", "rank_me", "lidar", "alpha_req")
    assert [name for name in (*PROTOCOLS, *PROBE_PROTOCOLS, *metrics) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("name", ["simsiam", "dino"])
def test_a_named_protocol_is_recorded(name):
    config = changed(CONFIG, linear_probe={"paper": name, "paper_epochs": 1})
    (record,) = evaluate(Network(), splits(), config, ["linear_probe"])
    assert (record["probe_protocol"], record["grid"]["epochs"], record["primary"]) == (name, 1, False)
    assert record["grid"]["optimizer"] == PROBE_PROTOCOLS[name].optimizer
    assert record["selected_on"].startswith("nothing")
    assert 0 <= record["value"] <= 1
    with pytest.raises(UserError, match=r"eval\.linear_probe\.paper: there is no 'byol2'"):
        evaluate(Network(), splits(), changed(config, linear_probe={"paper": "byol2"}), ["linear_probe"])
    with pytest.raises(UserError, match="no label"):
        evaluate(Network(), splits(labels=False), config, ["linear_probe"])


def test_grey_images_for_a_network_of_colours():
    torch.manual_seed(0)
    statistics = Normalization((0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
    network = build_backbone(BackboneConfig("convnet", width=4, blocks=[1, 1]), 3, statistics)
    config = changed(CONFIG, linear_probe={"paper": "moco", "paper_epochs": 2})
    (record,) = evaluate(network, splits(), config, ["linear_probe"])
    assert 0 <= record["value"] <= 1
    assert evaluate(network, splits(), CONFIG, ["fine_tune"])[0]["value"] >= 0


# fine-tuning


def test_learning_rates_fall_from_layer_to_layer():
    config = BackboneConfig("vit_tiny_patch16_224", kwargs={"img_size": 32, "patch_size": 8, "depth": 3})
    network = Classifier(build_backbone(config, 3), 192, 5, seed=0)
    groups = layer_groups(network, 0.1, 0.5, 0.05)
    names = {id(p): name for name, p in network.named_parameters()}
    seen = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert seen.keys() == set(names.values())
    # embeddings, three blocks, classifier: BEiT's lr · decay^(blocks + 1 - layer)
    for name, (rate, decay) in seen.items():
        layer = 4 if name.startswith("head") else 0
        if ".blocks." in name:
            layer = 1 + int(name.split(".blocks.")[1].split(".")[0])
        elif name.startswith("backbone.network.norm"):
            layer = 3
        assert rate == pytest.approx(0.1 * 0.5 ** (4 - layer)), name
        assert decay == (0.05 if network.get_parameter(name).ndim > 1 else 0), name


def test_layers_of_a_network_that_does_not_name_them():
    network = Classifier(Network(), 8, 3, seed=0)
    groups = layer_groups(network, 1.0, 0.1, 0.0)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    found = [round(math.log10(rates[id(p)])) for p in network.parameters()]
    # linear and its bias, BatchNorm of that layer, second linear, classifier
    assert found == [-2, -2, -2, -2, -1, -1, 0, 0]


def test_fine_tuning_learns_chooses_on_the_holdout_and_keeps_the_backbone():
    network, parts = Network(), splits()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = fine_tune(
        Encoder(network, progress=False),
        parts.train,
        parts.test,
        FineTuneSettings([0.0, 0.02], epochs=8, batch_size=7),  # 50 images: the last batch has one
        holdout=parts.holdout,
    )
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [(s.learning_rate, s.epochs) for s in result.settings] == [(r, e) for r in (0.0, 0.02) for e in range(1, 9)]
    assert result.chosen.learning_rate == 0.02
    assert result.chosen.holdout_accuracy == max(s.holdout_accuracy for s in result.settings)
    assert result.accuracy > 0.7
    for images, accuracy in ((parts.test, result.accuracy), (parts.holdout, result.chosen.holdout_accuracy)):
        logits = extract_features(result.network, images, progress=False)
        right = (result.classes[logits.features.argmax(1)] == images.labels).double().mean()
        assert accuracy == pytest.approx(right.item()), "the network of the chosen epoch is the one kept"
    again = fine_tune(
        Encoder(network, progress=False),
        parts.train,
        parts.test,
        FineTuneSettings([0.02], epochs=8, batch_size=7),
        holdout=parts.holdout,
    )
    assert again.settings == result.settings[8:]


def test_fine_tuning_keeps_the_network_of_an_early_epoch():
    parts = splits()
    labels = (parts.holdout.labels + 1) % 3  # what is learned is wrong here, so that training on makes it worse
    held = resident(
        parts.holdout.read(torch.arange(20)),
        labels,
        name="bands",
        split="train",
        image_size=9,
        normalization=STATISTICS,
    )
    result = fine_tune(
        Encoder(Network(), progress=False),
        parts.train,
        parts.test,
        FineTuneSettings([0.02], epochs=6, batch_size=16),
        holdout=held,
    )
    assert result.chosen.epochs < 6
    logits = extract_features(result.network, held, progress=False).features
    loss = nn.functional.cross_entropy(logits, labels).item()
    assert result.chosen.holdout_loss == pytest.approx(loss, rel=1e-5)
    assert abs(result.settings[-1].holdout_loss - loss) > 0.1, "the last epoch's network is another"


def test_fine_tuning_trains_the_backbone_and_sets_images_aside():
    parts = splits()
    record = evaluate(Network(), replace(parts, holdout=parts.holdout.subset(torch.arange(0))), CONFIG, ["fine_tune"])[
        0
    ]
    assert record["selected_on"] == "10% of train (5 images)"
    assert record["grid"]["layer_decay"] == 0.75
    result = fine_tune(
        Encoder(Network(), progress=False), parts.train, parts.test, FineTuneSettings(epochs=1, batch_size=10)
    )
    moved = [
        not torch.equal(p, q) for p, q in zip(Network().parameters(), result.network.backbone.parameters(), strict=True)
    ]
    assert all(moved)
    with pytest.raises(UserError, match=r"eval\.fine_tune\.layer_decay"):
        fine_tune(Encoder(Network()), parts.train, parts.test, FineTuneSettings(layer_decay=0.0))
    with pytest.raises(UserError, match="no label"):
        fine_tune(Encoder(Network()), splits(labels=False).train, parts.test, FineTuneSettings())


# within evaluate


def test_expensive_probes_run_only_by_name(tmp_path):
    by_name = {name for name, entry in PROTOCOLS.items() if entry.by_name}
    assert {"logistic", "fine_tune"} <= by_name
    with pytest.warns(UserWarning, match="Left out"):
        records = evaluate(None, splits(), CONFIG, run_dir=tmp_path)
    assert {"ridge", "few_shot", "linear_probe"} <= {r["protocol"] for r in records}
    assert not {r["protocol"] for r in records} & by_name
    named = evaluate(None, splits(), CONFIG, protocols=["logistic", "ridge"], run_dir=tmp_path)
    parts = pixel_splits(splits())
    expected = logistic_probe(parts.train, parts.test, holdout=parts.holdout, c=[0.01, 1.0], progress=False)
    assert named[0]["value"] == expected.accuracy
    assert named[0]["chosen"]["c"] == expected.chosen.c
    assert named[1]["value"] == ridge_probe(parts.train, parts.test, holdout=parts.holdout).accuracy
    stored = read_results(tmp_path)
    assert sum(r["protocol"] == "ridge" for r in stored) == 1, "the same measurement is not kept twice"


def test_few_shot_records():
    records = evaluate(None, splits(), CONFIG, ["few_shot"])
    assert [(r["shots"], r["classifier"]) for r in records] == [
        (1, "centroid"),
        (1, "logistic"),
        (3, "centroid"),
        (3, "logistic"),
    ]
    assert [r["primary"] for r in records] == [True, False, False, False]
    assert all(r["value"] > 0.9 for r in records), "the bands are easy to tell apart"
    assert records[0]["interval"] >= 0
