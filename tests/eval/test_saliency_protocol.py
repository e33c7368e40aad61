"""Maps of one similarity by several ways: sums, loops, planted causes, and what each way refuses."""

import math
from dataclasses import replace

import pytest
import torch
from measuring import changed, evaluate
from tiny import resident
from torch import nn
from torch.nn import functional as F

from selfsup.data.base import Splits
from selfsup.errors import UserError
from selfsup.eval import eval_config
from selfsup.eval.saliency import WAYS
from selfsup.eval.saliency.fullgrad import gradient_parts
from selfsup.eval.ways import Scene, way
from selfsup.nn import BackboneConfig, build_backbone
from selfsup.types import Normalization

CONFIG = eval_config(
    batch_size=8, saliency={"images": 3, "effort": 0.03, "squares": 20, "samples": 1}, figures=False, cache=False
)
PLAIN = Normalization((0.4,), (0.3,))


class Small(nn.Module):
    """Convolutions with biases, BatchNorm and ReLU in place: linear piece by piece, pooled by the mean."""

    in_channels = 3

    def __init__(self, activation=nn.ReLU):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            activation(inplace=True) if activation is nn.ReLU else activation(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
        )
        for module in self.inner:
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.running_mean, module.weight.data, module.bias.data):
                    tensor.copy_(torch.randn(len(tensor)) * 0.5)
                module.running_var.copy_(torch.rand(len(module.running_var)) + 0.5)

    def forward(self, images):
        return self.forward_dense(images).mean((2, 3))

    def forward_dense(self, images):
        return self.inner(images)


def scene(network=None, images=2, effort=0.05, side=16):
    network = (network or Small()).double().eval()
    generator = torch.Generator().manual_seed(1)
    seen = torch.randn(images, 3, side, side, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        target = F.normalize(
            network(torch.randn(images, 3, side, side, generator=generator, dtype=torch.float64)), dim=1
        )
    return Scene(network, seen, target, seed=3, effort=effort)


def splits(masks=True, count=24, side=32):
    """Grey noise with a bright square, whose quadrant is the class."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(60, 100, (count, 3, side, side), generator=generator).to(torch.uint8)
    which = torch.arange(count) % 4
    objects = torch.zeros(count, side, side, dtype=torch.uint8)
    half = side // 2
    for image in range(count):
        top, left = half * (int(which[image]) // 2), half * (int(which[image]) % 2)
        images[image, :, top + 2 : top + half - 2, left + 2 : left + half - 2] = 230
        objects[image, top + 2 : top + half - 2, left + 2 : left + half - 2] = 1
    data = resident(images, which, objects if masks else None, name="squares", image_size=side, normalization=PLAIN)
    part = torch.arange(count).split([count - 8, 8])
    train = data.subset(part[0])
    return Splits(train, train, data.subset(torch.arange(0)), data.subset(part[1]))


def test_complete_maps_sum_to_the_cosine():
    found = scene()
    with torch.no_grad():
        expected = F.cosine_similarity(found.network(found.images), found.target)
    complete = [name for name, one in WAYS.items() if one.complete]
    assert complete == ["fullgrad", "similarity"]
    for name in complete:
        total = WAYS[name].explain(found).sum((1, 2))
        torch.testing.assert_close(total, expected, rtol=0, atol=2e-6, check_dtype=False)


def test_gradients_by_the_biases_are_those_of_shifted_weights():
    found = scene(images=1)
    whole, parts = gradient_parts(found)
    score = found.linear_score()
    step = 1e-6
    # the input term: the score of (1 + ε) x rises by it
    rise = (score(found.images * (1 + step)) - score(found.images * (1 - step))) / (2 * step)
    assert whole.sum().item() == pytest.approx(rise.item(), rel=1e-4)
    layers = [m for m in found.network.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    assert len(parts) == len(layers) == 4
    for layer, part in zip(layers, parts, strict=True):
        bias = layer.bias.data.clone()
        shift = bias
        if isinstance(layer, nn.BatchNorm2d):
            shift = bias - layer.running_mean * layer.weight.data / (layer.running_var + layer.eps).sqrt()
        values = []
        for sign in (1, -1):
            layer.bias.data = bias + sign * step * shift
            values.append(score(found.images).item())
        layer.bias.data = bias
        assert part.sum().item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("activation", [nn.GELU, nn.Sigmoid])
def test_fullgrad_refuses_what_is_not_linear_piece_by_piece(activation):
    with pytest.raises(UserError, match="not linear piece by piece"):
        WAYS["fullgrad"].explain(scene(Small(activation)))


def test_normgrad_is_the_product_over_the_stages():
    class Linear(nn.Module):
        """One stage: a convolution of 1 × 1, whose activation and gradient are known."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.only = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False))
            self.last = nn.Flatten()

        def forward(self, images):
            return self.last(self.only(images).mean((2, 3)))

    found = scene(Linear(), images=1)
    with torch.no_grad():
        activation = found.network.only(found.images)
    expected = activation.norm(dim=1)  # the gradient is the same everywhere
    low, high = expected.min(), expected.max()
    torch.testing.assert_close(
        WAYS["normgrad"].explain(found).double(), (expected - low) / (high - low), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", sorted(WAYS))
def test_every_way_gives_a_finite_map_an_image_twice_the_same(name):
    found = scene(images=2)
    first, again = (WAYS[name].explain(found) for _ in range(2))
    assert first.ndim == 3
    assert len(first) == 2
    assert first.isfinite().all()
    assert torch.equal(first, again)
    assert not first.requires_grad
    assert all(p.grad is None for p in found.network.parameters())
    assert not any(m._forward_hooks for m in found.network.modules())
    # an image's map does not depend on its neighbours in the batch; the baselines of xrai are those of the batch
    if name not in ("random", "xrai", "smooth_grad"):
        alone = WAYS[name].explain(replace(found, images=found.images[:1], target=found.target[:1]))
        torch.testing.assert_close(first[:1], alone, rtol=1e-3, atol=1e-5)


class Bright(nn.Module):
    """Looks at the mean colour of the quadrants, nothing else: what counts is the bright square."""

    in_channels = 3

    def __init__(self):
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU())
        self.stage[0].weight.data.fill_(1.0)
        self.stage[0].bias.data.fill_(-3.0)

    def forward(self, images):
        quadrants = F.adaptive_avg_pool2d(self.stage(images), 2).flatten(1)
        # without a part that stays, the cosine would not see how much of the square is there
        return torch.cat([quadrants, torch.full_like(quadrants[:, :1], 0.5)], 1)


def test_ways_find_the_object_that_alone_counts_and_random_does_not():
    ways = ["random", "masking", "normgrad", "xrai", "deletion"]
    config = changed(CONFIG, saliency={"ways": ways, "effort": 0.3, "squares": 100, "images": 4})
    records = evaluate(Bright(), splits(), config, ["saliency"])
    found = {(r["way"], r.metric): r.value for r in records}
    for name in ways[1:]:
        assert found[name, "separation"] > 0.85, (name, found)
        assert found[name, "infidelity"] < found["random", "infidelity"]
        assert found[name, "information_area"] > found["random", "information_area"]
    assert found["random", "separation"] == pytest.approx(0.5, abs=0.06)
    assert found["random", "sensitivity"] == 0


def test_records_say_how_and_pictures_are_drawn(tmp_path):
    config = changed(CONFIG, figures=True)
    records = evaluate(Small(), splits(), config, ["saliency"], run_dir=tmp_path, seed=5)
    assert {r["way"] for r in records} == set(WAYS)
    assert {r.metric for r in records} == {
        "information_area",
        "infidelity",
        "sensitivity",
        "separation",
        "completeness",
    }
    for record in records:
        assert (record.split, record["images"], record["effort"], record["seed"]) == ("test", 3, 0.03, 5)
        assert len(record["per_image"]) == 3
        if record.metric == "completeness":
            assert record.value < 1e-4
    (sensitivity, *_) = (r for r in records if r.metric == "sensitivity")
    assert (sensitivity["radius"], sensitivity["samples"]) == (0.02, 1)
    assert {"saliency.png", "information_curves.png"} <= {p.name for p in (tmp_path / "figures").iterdir()}
    plain = changed(CONFIG, saliency={"samples": 0, "ways": ["masking"]})
    assert {r.metric for r in evaluate(Small(), splits(masks=False), plain, ["saliency"])} == {
        "information_area",
        "infidelity",
    }


def test_a_vision_transformer_gets_the_ways_that_it_allows():
    kwargs = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24}
    network = build_backbone(BackboneConfig(name="vit_tiny_patch16_224", kwargs=kwargs), 3)
    config = changed(CONFIG, saliency={"ways": ["similarity", "normgrad", "fullgrad", "masking"], "samples": 0})
    with pytest.warns(UserWarning, match=r"saliency left out similarity \(.*not the mean.*fullgrad \(.*linear piece"):
        records = evaluate(network, splits(), config, ["saliency"])
    assert {r["way"] for r in records} == {"normgrad", "masking"}


def test_what_cannot_be_explained_is_a_sentence():
    with pytest.raises(UserError, match=r"eval\.saliency\.ways: there is no way 'maskin'\. Did you mean 'masking'"):
        evaluate(Small(), splits(), changed(CONFIG, saliency={"ways": ["maskin"]}), ["saliency"])
    with pytest.raises(UserError, match=r"eval\.saliency\.ways: none of them .*similarity \("):
        evaluate(Bright(), splits(), changed(CONFIG, saliency={"ways": ["similarity"]}), ["saliency"])


def test_a_way_of_ones_own_is_one_function(monkeypatch):
    monkeypatch.setattr("selfsup.eval.ways.WAYS", WAYS)
    try:

        @way("middle")
        def middle(scene):
            """The middle of the image."""
            x = torch.linspace(-1, 1, scene.images.shape[3])
            return (-(x[:, None] ** 2) - x**2).expand(len(scene.images), -1, -1)

        records = evaluate(Small(), splits(), changed(CONFIG, saliency={"ways": ["middle"]}), ["saliency"])
        assert {r["way"] for r in records} == {"middle"}
        assert all(math.isfinite(r.value) for r in records)
    finally:
        WAYS.pop("middle", None)
    with pytest.raises(UserError, match="already taken"):
        way("masking")(lambda scene: scene.images[:, 0])
