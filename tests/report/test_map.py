"""The map of the features: as a file of a run, and in the page."""

import base64
import io
import json
import zipfile
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import resident

from selfsup.eval import FeatureSet, add_results
from selfsup.eval.shown import feature_map
from selfsup.report import compare
from selfsup.report.atlas import FILE, read_atlas, save_atlas
from selfsup.report.page import write_report
from selfsup.types import Normalization

HOSTILE = "<script>alert(1)</script>\"'&"
COUNT = 12


def shown(seed=0, values=None, channels=3):
    """A map of images of one shade each: that of their index, unless others are given."""
    shades = torch.arange(COUNT) * 20 if values is None else torch.tensor(values)
    images = resident(
        shades.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, channels, 8, 8),
        None,
        name="flat",
        split="test",
        image_size=8,
        normalization=Normalization((0.5,), (0.5,)),
        classes=("a", HOSTILE),
    )
    features = torch.randn(COUNT, 6, generator=torch.Generator().manual_seed(seed))
    return feature_map(FeatureSet(features, torch.arange(COUNT) % 2, images.index), images, "test"), features


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_map_comes_back_as_it_was_written(tmp_path, channels):
    made, features = shown(channels=channels)
    save_atlas(made, tmp_path)
    atlas = read_atlas(tmp_path)
    assert np.array_equal(atlas.points, made.points.numpy().astype(np.float32))
    assert atlas.classes == ("a", HOSTILE)
    assert atlas.labels.tolist() == (made.index % 2).tolist()
    sheet = Image.open(io.BytesIO(atlas.sheet)).convert("RGB")
    for place, index in enumerate(made.index.tolist()):
        middle = (place % atlas.columns * atlas.side + 16, place // atlas.columns * atlas.side + 16)
        assert sheet.getpixel(middle)[0] == pytest.approx(20 * index, abs=4)
    unit = torch.nn.functional.normalize(features[made.index], dim=1)
    table = unit @ unit.T - 9 * torch.eye(COUNT)
    assert torch.equal(torch.from_numpy(atlas.neighbours), table.argsort(1, descending=True)[:, :8])


def test_a_file_that_is_no_map_is_left_out(tmp_path):
    assert read_atlas(tmp_path) is None
    (tmp_path / FILE).write_bytes(b"no archive")
    assert read_atlas(tmp_path) is None
    made, _ = shown()
    save_atlas(replace(made, neighbours=made.neighbours + COUNT), tmp_path)
    assert read_atlas(tmp_path) is None
    save_atlas(replace(made, points=made.points * float("nan")), tmp_path)
    assert read_atlas(tmp_path) is None


def test_a_damaged_map_is_left_out(tmp_path):
    whole = save_atlas(shown()[0], tmp_path).read_bytes()
    for place in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        (tmp_path / FILE).write_bytes(damaged)
        read_atlas(tmp_path)  # the map or None, and no exception
        (tmp_path / FILE).write_bytes(whole[:place])
        assert read_atlas(tmp_path) is None


def test_a_huge_map_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(save_atlas(shown()[0], tmp_path), "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(2**26))
    assert read_atlas(tmp_path) is None


class Maps(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.data, self.tags, self.sheets = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if "data-map" in attributes:
            self.data += json.loads(attributes["data-map"])["maps"]
        if attributes.get("src", "").startswith("data:image/jpeg"):
            self.sheets.append(base64.b64decode(attributes["src"].partition(",")[2]))


def numbers(text):
    return np.frombuffer(base64.b64decode(text), dtype="<u2").tolist()


def test_the_page_has_the_maps_and_the_same_images_once(tmp_path):
    made = {}
    for name, seed, values in (("a", 0, None), ("b", 1, None), ("c", 2, [7] * COUNT)):
        add_results(tmp_path / name, [{"protocol": "knn", "split": "test", "metric": "top1", "value": 0.5}])
        made[name] = shown(seed, values)[0]
        save_atlas(made[name], tmp_path / name / "figures")
    page = write_report(compare([tmp_path / name for name in made]), tmp_path / "page.html").read_text("utf-8")
    found = Maps(page)
    assert [one["name"] for one in found.data] == ["a", "b", "c"]
    assert [one["sheet"] for one in found.data] == [0, 0, 1]
    assert len(found.sheets) == 2
    assert found.tags.count("script") == 1
    for one in found.data:
        own = made[one["name"]]
        assert one["classes"] == ["a", HOSTILE]
        assert numbers(one["neighbours"]) == own.neighbours.flatten().tolist()
        assert numbers(one["labels"]) == own.labels.tolist()
        places = np.array(numbers(one["points"])).reshape(-1, 2) / 65535
        low, high = own.points.numpy().min(0), own.points.numpy().max(0)
        assert places == pytest.approx((own.points.numpy() - low) / (high - low).max(), abs=1e-4)


def test_classes_of_the_map_name_those_of_the_charts(tmp_path):
    counts = [[8, 2], [1, 9]]
    found = {"confusion": {"labels": [0, 1], "counts": counts}, "per_class": {"0": 0.8, "1": 0.9}}
    record = {"protocol": "linear_probe", "split": "test", "metric": "top1", "value": 0.85, "data": "flat", **found}
    add_results(tmp_path / "run", [record])
    save_atlas(shown()[0], tmp_path / "run" / "figures")
    (run,) = compare([tmp_path / "run"]).runs
    assert run.classes == ("a", HOSTILE)
    text = write_report(compare([tmp_path / "run"]), tmp_path / "page.html").read_text("utf-8")
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 4
