import random

import pytest
import torch
from torch import nn
from torchvision.transforms import functional as tv

from selfsup.data.base import Read
from selfsup.data.resident import ResidentDataset
from selfsup.errors import UserError
from selfsup.eval import FeatureSet, extract_features, raw_pixels
from selfsup.eval.encoder import Encoder, prepare_images
from selfsup.types import ImageFacts, Normalization

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def images_of(count=11, channels=3, height=8, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator).to(torch.uint8)


def dataset_of(images, labels=True, image_size=8, cls=ResidentDataset):
    channels = images.shape[1]
    facts = ImageFacts("noise", "train", channels, image_size, Normalization(MEAN[:channels], STD[:channels]))
    return cls(images, torch.arange(len(images)) % 3 if labels else None, facts)


def network(channels=3, width=5):
    torch.manual_seed(0)
    layers = nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.5)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Counting(nn.Module):
    """Counts its forward passes."""

    def __init__(self):
        super().__init__()
        self.inner = network()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return self.inner(images)


def expected(backbone, images, mean=MEAN, std=STD):
    rows = []
    backbone.eval()
    for image in images:
        channels = [(image[c].double() / 255 - mean[c]) / std[c] for c in range(len(image))]
        rows.append(backbone(torch.stack(channels)[None].float())[0])
    return torch.stack(rows).detach()


def test_features_are_those_of_a_loop_over_the_images():
    images = images_of()
    found = extract_features(network(), dataset_of(images), batch_size=4, progress=False)
    torch.testing.assert_close(found.features, expected(network(), images), rtol=1e-4, atol=1e-5)
    assert found.features.dtype == torch.float32
    assert found.labels.tolist() == [i % 3 for i in range(11)]
    assert found.index.tolist() == list(range(11))


def test_a_part_keeps_the_index_of_its_source():
    part = dataset_of(images_of()).subset(torch.tensor([7, 2, 9]))
    found = extract_features(network(), part, progress=False)
    assert found.index.tolist() == [7, 2, 9]
    torch.testing.assert_close(found.features, expected(network(), images_of()[[7, 2, 9]]), rtol=1e-4, atol=1e-5)


def test_statistics_of_the_backbone_win():
    backbone = network()
    backbone.normalization = Normalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    found = extract_features(backbone, dataset_of(images_of()), progress=False)
    reference = expected(network(), images_of(), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    torch.testing.assert_close(found.features, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "size"), [(10, 15, 8), (14, 9, 8), (8, 13, 8), (5, 7, 8), (33, 20, 7)])
def test_resize_and_crop_are_torchvisions(height, width, size):
    images = images_of(2, height=height, width=width)
    reference = tv.center_crop(tv.resize(images.float() / 255, size, antialias=True), size)
    torch.testing.assert_close(prepare_images(images, size, 3), reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("side", "resize", "size"), [(33, 16, 14), (16, 16, 14), (40, 20, 20), (12, 16, 14)])
def test_the_papers_crop_is_torchvisions(side, resize, size):
    images = images_of(2, height=side, width=side)
    reference = tv.center_crop(tv.resize(images.float() / 255, resize, antialias=True), size)
    torch.testing.assert_close(prepare_images(images, size, 3, None, resize), reference, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=rf"eval\.resize is 5, smaller than data\.image_size={size}"):
        prepare_images(images, size, 3, None, 5)


def test_the_papers_crop_reaches_the_network_and_keeps_its_own_cache(tmp_path):
    images, cache = images_of(), tmp_path / "train.pt"
    data = dataset_of(images)
    for resize in (None, 16, None):
        encoder = Encoder(network(), progress=False, resize=resize)
        prepared = prepare_images(images, data.image_size, 3, data.normalization, resize)
        with torch.no_grad():
            reference = network().eval()(prepared)
        torch.testing.assert_close(encoder.features(data, cache).features, reference, rtol=1e-4, atol=1e-5)
        pixels = Encoder(None, progress=False, resize=resize).features(data).features
        torch.testing.assert_close(pixels, prepare_images(images, data.image_size, 3, None, resize).flatten(1))


def test_a_backbone_in_training_is_left_as_it_was():
    backbone = network().train()
    backbone[3].eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    modes = [module.training for module in backbone.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    extract_features(backbone, dataset_of(images_of()), progress=False)
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_come_back_after_an_error():
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout())
    with pytest.raises(UserError, match=r"\[B,D\]"):
        extract_features(backbone, dataset_of(images_of()), progress=False)
    assert backbone.training
    assert backbone[1].training


def test_autocast_around_the_call_changes_nothing():
    plain = extract_features(network(), dataset_of(images_of()), progress=False)
    with torch.autocast("cpu", torch.bfloat16):
        under = extract_features(network(), dataset_of(images_of()), progress=False)
    assert torch.equal(plain.features, under.features)


def test_features_can_enter_a_graph():
    found = extract_features(network(), dataset_of(images_of()), progress=False)
    weight = torch.ones(5, requires_grad=True)
    (found.features @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, found.features.sum(0))


def test_grey_images_are_repeated_for_a_colour_backbone():
    grey = images_of(channels=1)
    found = extract_features(network(), dataset_of(grey), progress=False)
    reference = expected(network(), grey.repeat(1, 3, 1, 1), MEAN[:1] * 3, STD[:1] * 3)
    torch.testing.assert_close(found.features, reference, rtol=1e-4, atol=1e-5)


def test_colour_images_are_refused_by_a_grey_backbone():
    with pytest.raises(UserError, match=r"1 channel\(s\) and the data has 3"):
        extract_features(network(channels=1), dataset_of(images_of()), progress=False)


def test_features_that_are_not_finite_are_counted():
    class Diverged(nn.Module):
        def forward(self, images):
            features = images.flatten(1)[:, :4].clone()
            features[:2, 1] = float("nan")
            features[3, 0] = float("inf")
            return features

    with pytest.raises(UserError, match="for 3 of 11 images"):
        extract_features(Diverged(), dataset_of(images_of()), progress=False)


def test_an_empty_split_is_an_error_of_the_user():
    empty = dataset_of(images_of()).subset(torch.tensor([], dtype=torch.int64))
    with pytest.raises(UserError, match="empty"):
        extract_features(network(), empty, progress=False)
    with pytest.raises(UserError, match="empty"):
        raw_pixels(empty)


def test_images_that_cannot_be_decoded_are_left_out():
    class Damaged(ResidentDataset):
        def read_decodable(self, positions):
            return Read(self.read(positions), positions % 4 != 1)

    found = extract_features(network(), dataset_of(images_of(), cls=Damaged), batch_size=4, progress=False)
    kept = [i for i in range(11) if i % 4 != 1]
    assert found.index.tolist() == kept
    assert found.labels.tolist() == [i % 3 for i in kept]
    torch.testing.assert_close(found.features, expected(network(), images_of()[kept]), rtol=1e-4, atol=1e-5)


def test_the_cache_serves_the_same_weights_and_images_only(tmp_path):
    cache, backbone = tmp_path / "deep" / "train.pt", Counting()

    def extract(images=None, labels=True):
        data = dataset_of(images_of() if images is None else images, labels)
        return extract_features(backbone, data, cache=cache, progress=False)

    first = extract()
    second = extract()
    assert backbone.calls == 1
    assert torch.equal(first.features, second.features)
    assert second.labels.tolist() == first.labels.tolist()
    extract(images_of(seed=1))
    assert backbone.calls == 2
    with torch.no_grad():
        backbone.inner[0].weight[0, 0, 0, 0] += 1e-3
    changed = extract()
    assert backbone.calls == 3
    assert not torch.equal(changed.features, first.features)


def test_a_broken_cache_is_named(tmp_path):
    (tmp_path / "train.pt").write_bytes(random.Random(0).randbytes(64))
    with pytest.raises(UserError, match=r"train\.pt"):
        extract_features(network(), dataset_of(images_of()), cache=tmp_path / "train.pt", progress=False)


@pytest.mark.parametrize("labels", [None, torch.tensor([4, -1])])
def test_saving_and_loading(tmp_path, labels):
    FeatureSet(torch.tensor([[1.0, 2], [3, 4]]), labels, torch.tensor([5, 8])).save(tmp_path / "set.pt")
    loaded = FeatureSet.load(tmp_path / "set.pt")
    assert loaded.features.tolist() == [[1, 2], [3, 4]]
    assert loaded.index.tolist() == [5, 8]
    assert (loaded.labels is None) if labels is None else loaded.labels.tolist() == [4, -1]
    assert [file.name for file in tmp_path.iterdir()] == ["set.pt"]


def test_loading_something_else(tmp_path):
    torch.save([1, 2], tmp_path / "other.pt")
    with pytest.raises(UserError, match="holds no features"):
        FeatureSet.load(tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"missing\.pt"):
        FeatureSet.load(tmp_path / "missing.pt")


def test_raw_pixels_are_the_pixels():
    images = images_of()
    found = raw_pixels(dataset_of(images), batch_size=3)
    assert found.features.shape == (11, 3 * 8 * 8)
    assert found.features[6].tolist() == pytest.approx([value / 255 for value in images[6].flatten().tolist()])
    assert raw_pixels(dataset_of(images, image_size=4)).features.shape == (11, 3 * 4 * 4)
    assert raw_pixels(dataset_of(images, labels=False)).labels is None


def test_a_lowered_precision_is_autocast_and_has_a_cache_of_its_own(tmp_path):
    backbone = Counting()
    data, cache = dataset_of(images_of()), tmp_path / "f.pt"
    full = extract_features(backbone, data, batch_size=4, cache=cache, progress=False).features
    lowered = extract_features(backbone, data, batch_size=4, cache=cache, precision="bf16", progress=False).features
    assert backbone.calls == 6
    assert lowered.dtype == torch.float32
    assert not torch.equal(lowered, full)
    torch.testing.assert_close(lowered, full, rtol=0.05, atol=0.02)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        wanted = network().eval()((images_of() / 255 - mean) / std)
    torch.testing.assert_close(lowered, wanted.float(), rtol=0.02, atol=0.01)
    assert torch.equal(extract_features(backbone, data, batch_size=4, precision="auto", progress=False).features, full)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_features_are_those_of_the_cpu_and_auto_is_bf16_where_there_is_bf16():
    data = dataset_of(images_of())
    full = extract_features(network(), data, batch_size=4, progress=False).features
    there = extract_features(network(), data, batch_size=4, device="cuda", progress=False).features
    torch.testing.assert_close(there, full, rtol=1e-2, atol=1e-3)
    lowered = extract_features(network(), data, batch_size=4, device="cuda", precision="auto", progress=False).features
    assert torch.equal(lowered, there) != torch.cuda.is_bf16_supported(False)
    torch.testing.assert_close(lowered, full, rtol=0.05, atol=0.02)
