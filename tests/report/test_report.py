import base64
import csv
import hashlib
import io
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from selfsup.engine.stop import Interrupted
from selfsup.engine.training import load_resumed_config, train
from selfsup.eval import add_results
from selfsup.report import compare
from selfsup.report.estimates import accuracy_over_time, estimate, seed_groups, wilson_interval
from selfsup.report.page import write_report

VOID = {"meta", "img", "br", "hr", "input", "link"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Page(HTMLParser):
    """Every element of a page with its attributes and text; tags that do not nest are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))

    def handle_endtag(self, tag):
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data):
        for place in self._open:
            self.elements[place][2].append(data)

    def all(self, tag):
        return [(attributes, "".join(text)) for name, attributes, text in self.elements if name == tag]

    def text_of(self, key):
        (text,) = ["".join(text) for _, attributes, text in self.elements if attributes.get("id") == key]
        return text


def record(protocol="knn", value=0.5, metric="top1", split="test", **fields):
    common = {"data": "digits", "image_size": 8, "train_images": 100, "holdout_images": 40, "test_images": 50}
    extra = {"k": 20, "temperature": 0.07} if protocol == "knn" else {}
    return {"protocol": protocol, "split": split, "metric": metric, "value": value, **common, "primary": True} | (
        extra | fields
    )


def everything(shift=0.0):
    """Records of each kind that the page draws."""
    spectrum = {"rank": [1, 2, 4, 8], "value": [1.0, 0.5, 0.1, 0.01]}
    found = [
        record(value=0.6 + shift),
        record(value=0.7 + shift, k=200, primary=False),
        record("linear_probe", 0.8 + shift, grid={"learning_rates": [0.1, 1.0]}, settings=[{"learning_rate": 0.1}]),
        record("segmentation", 0.3 + shift, "miou", per_class={"background": 0.9, "disc": 0.1}),
        record("diagnostics", 12.5 + shift, "rank_me", "train", spectrum=spectrum, dim=16),
        record("diagnostics", -2.0 + shift, "uniformity", "train"),
        record("invariance", 0.4 + shift, "alignment", "holdout", operation="all"),
        record("training", 61.5, "seconds", "pretrain", images=105, batch_size=10, epochs=3, peak_memory_mb=900.0),
    ]
    for depth, layer in enumerate(("layer1", "layer2", "head.1")):
        found.append(record("layers", 0.2 + depth / 10 + shift, "top1", "holdout", layer=layer, depth=depth))
    for operation, value in (("flip", 0.9), ("hue", 0.2)):
        found.append(record("invariance", value - shift, "invariance", "holdout", operation=operation))
        found.append(record("invariance", value / 2, "equivariance", "holdout", operation=operation))
    return found


def make_run(folder: Path, records=None, method="simclr", seed: int | None = 0, lr=0.1, timed=True) -> Path:
    folder.mkdir(parents=True)
    if seed is not None:
        config = {"method": {"name": method}, "seed": seed, "run_dir": str(folder), "optimizer": {"lr": lr}}
        (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    add_results(folder, everything() if records is None else records)
    (folder / "metrics.csv").write_text("epoch,online/knn,step,train/loss\n0,,1,5.0\n0,0.25,3,\n1,,5,4.0\n1,0.5,7,\n")
    if timed:
        (folder / "times.csv").write_text("step,seconds\n3,10.5\n7,20.25\n")
    (folder / "figures").mkdir()
    for name, size in (("neighbours", (30, 20)), ("feature_map", (12, 9)), ("segmentation", (8, 8))):
        Image.new("RGB", size, (200, 30, seed or 0)).save(folder / "figures" / f"{name}.png")
    return folder


def page_of(folders, out: Path) -> tuple[Page, str]:
    text = write_report(compare(folders), out / "page.html").read_text("utf-8")
    return Page(text), text


def downloads(page: Page) -> dict[str, list[dict[str, str]]]:
    found = {}
    for attributes, _ in page.all("a"):
        if "download" in attributes:
            text = base64.b64decode(attributes["href"].partition(",")[2]).decode("utf-8")
            found[attributes["download"]] = list(csv.DictReader(io.StringIO(text, newline="")))
    return found


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (1, 50), (812, 1000), (7, 9)])
def test_the_interval_is_wilson_s(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_runs_that_differ_in_the_seed_alone_are_one_configuration(tmp_path: Path) -> None:
    values = [0.60, 0.64, 0.71]
    folders = [make_run(tmp_path / f"a{s}", [record(value=v)], seed=s) for s, v in enumerate(values)]
    folders.append(make_run(tmp_path / "other_lr", [record(value=0.9)], seed=3, lr=0.2))
    folders.append(make_run(tmp_path / "other_k", [record(value=0.9, k=5)], seed=4))
    folders.append(make_run(tmp_path / "longer", [record(value=0.9, epoch=9)], seed=5))
    folders.append(make_run(tmp_path / "baseline", [record(value=0.1)], seed=None))
    folders.append(make_run(tmp_path / "baseline2", [record(value=0.1)], seed=None))
    table = compare(folders)
    groups = seed_groups(table)
    assert [group.places for group in groups] == [(0, 1, 2), (3,), (4,), (5,), (6,), (7,)]
    assert [group.label for group in groups][:2] == ["simclr, 3 seeds", "other_lr"]
    found = estimate(table, groups[0].places, "kNN")
    assert found is not None
    mean, spread = np.mean(values), np.std(values, ddof=1)
    assert (found.value, found.low, found.high) == pytest.approx((mean, mean - spread, mean + spread))
    assert found.kind == "std over seeds"


def test_the_same_seed_twice_is_no_second_seed(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "other", method="moco"), make_run(tmp_path / "b")]
    assert [group.places for group in seed_groups(compare(folders))] == [(0,), (1,), (2,)]


def test_configurations_of_one_method_have_names_of_their_own(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"r{lr}-{seed}", seed=seed, lr=lr) for lr in (1, 2) for seed in (0, 1)]
    labels = [group.label for group in seed_groups(compare(folders))]
    assert labels == ["simclr, 2 seeds (r1-0)", "simclr, 2 seeds (r2-0)"]


@pytest.mark.parametrize(("split", "count"), [("test", 50), ("holdout", 40)])
def test_the_interval_of_a_run_is_that_of_its_scored_images(split: str, count: int, tmp_path: Path) -> None:
    records = [record(value=0.6, split=split), record("segmentation", 0.3, "miou", split)]
    table = compare([make_run(tmp_path / "a", records)])
    found, miou = (estimate(table, (0,), column) for column in ("kNN", "mIoU"))
    assert found is not None
    assert miou is not None
    expected = binomtest(round(0.6 * count), count).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (miou.value, miou.low, miou.kind) == (0.3, None, "")  # no share of independent trials
    assert estimate(table, (0,), "linear probe") is None


def test_accuracy_and_time_are_joined_by_the_step(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    assert accuracy_over_time(compare([folder]).runs[0]) == [(3, 10.5, 0.25), (7, 20.25, 0.5)]
    (folder / "times.csv").write_text("step,seconds\n7,20.25\n9,nan\nbroken\n")
    assert accuracy_over_time(compare([folder]).runs[0]) == [(7, 20.25, 0.5)]


def test_training_keeps_the_time_of_every_epoch_and_goes_on_after_a_stop(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfsup.engine.callbacks import Checkpoints

    with monkeypatch.context() as patch:  # told to stop in the second of three epochs
        original = Checkpoints.on_train_batch_end

        def tell(self: Any, trainer: Any, *rest: Any) -> None:
            self.stop.received = 15 if trainer.global_step == 6 else 0
            original(self, trainer, *rest)

        patch.setattr(Checkpoints, "on_train_batch_end", tell)
        with pytest.raises(Interrupted) as stopped:
            train(tiny_config("simclr", "trainer.max_epochs=3", run="parts"))
    folder = stopped.value.checkpoint.parent.parent
    before = (folder / "times.csv").read_text().splitlines()
    assert len(before) == 2
    train(load_resumed_config([f"resume={folder}"]))
    after = (folder / "times.csv").read_text().splitlines()
    assert after[:2] == before
    assert after[0].split(",")[:2] == ["step", "seconds"]
    steps, seconds = zip(*(map(float, line.split(",")[:2]) for line in after[1:]), strict=True)
    assert steps == (3, 7, 11)  # four steps an epoch, counted from 0 as in metrics.csv
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    table = compare([folder])
    curve = accuracy_over_time(table.runs[0])
    assert [(step, time) for step, time, _ in curve] == list(zip(steps, seconds, strict=True))
    assert table.rows[0]["images seen"] == 3 * 4 * 16


def test_the_page_is_whole_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "a", everything(), "simclr"), make_run(tmp_path / "b", everything(0.05), "moco")]
    page, text = page_of(folders, tmp_path)
    titles = [words for _, words in page.all("h2")]
    assert titles == [
        "Results",
        "Settings that differ",
        "Accuracies",
        "Training",
        "Accuracy over wall time",
        "Alignment and uniformity",
        "Singular values",
        "Accuracy by layer",
        "Invariance",
        "Nearest neighbours",
        "Maps of the features",
        "Segmentation",
        "Protocols",
    ]
    for tag, attributes, _ in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            to_a_run = attributes.get(name) in ("a/", "b/")
            known = ("#", "data:image/png;base64,", "data:text/csv;")
            assert to_a_run or attributes.get(name, "#").startswith(known), attributes
    assert text.count("url(") == text.count('"url(#')
    assert "@import" not in text
    ((_, script),) = page.all("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] for a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert "$" not in re.sub(r"<script>.*</script>", "", text, flags=re.DOTALL)  # a placeholder that was not filled


def test_the_page_can_be_read_by_a_screen_reader(tmp_path: Path) -> None:
    page, _ = page_of([make_run(tmp_path / "a"), make_run(tmp_path / "b", method="moco")], tmp_path)
    assert page.all("html")[0][0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert max(Counter(ids).values()) == 1
    for attributes, _ in page.all("a"):
        assert attributes["href"].startswith("data:") or attributes["href"].lstrip("#") in {*ids, "a/", "b/"}
    assert all(attributes["scope"] in ("col", "row") for attributes, _ in page.all("th"))
    assert all(attributes["alt"] for attributes, _ in page.all("img"))
    assert len(page.all("img")) == 6
    charts = [attributes for attributes, _ in page.all("svg") if attributes.get("role") == "img"]
    assert len(charts) == len(page.all("svg")) == 8
    assert all(chart["aria-label"] for chart in charts)
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))


def test_text_from_files_stays_text(tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "")
    records = [
        record(value=0.6, data=HOSTILE, **{HOSTILE: HOSTILE}),
        record(HOSTILE, 0.5, HOSTILE, HOSTILE),
        record("linear_probe", 0.5, split=HOSTILE),
        record("layers", 0.5, layer=HOSTILE, depth=0),
        record("invariance", 0.5, "invariance", operation=HOSTILE),
        record("segmentation", 0.5, "miou", per_class={HOSTILE: 0.5}, grid={HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}]}),
    ]
    folders = [make_run(tmp_path / name, records, seed=None), make_run(tmp_path / "b")]
    (folders[0] / "config.yaml").write_text(f"method: {json.dumps(HOSTILE)}\nbackbone: {json.dumps(HOSTILE)}\n")
    page, text = page_of(folders, tmp_path)
    assert len(page.all("script")) == 1
    assert "alert" not in page.all("script")[0][1]
    assert not any("onerror" in attributes for _, attributes, _ in page.elements)
    assert all(attributes["src"].startswith("data:") for attributes, _ in page.all("img"))
    assert "<img src=x" not in text
    assert HOSTILE in page.text_of("run0-segmentation")
    assert name in [words for _, words in page.all("h3")]


def test_the_pictures_are_in_the_page(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "a", seed=1), make_run(tmp_path / "b", method="moco", seed=2)]
    (folders[1] / "figures" / "neighbours.png").write_bytes(b"GIF89a no PNG")
    (folders[1] / "figures" / "segmentation.png").unlink()
    page, _ = page_of(folders, tmp_path)
    pictures = [attributes for attributes, _ in page.all("img")]
    found = {a["alt"]: (a["width"], a["height"], base64.b64decode(a["src"].partition(",")[2])) for a in pictures}
    assert set(found) == {
        "Nearest neighbours of a",
        "Maps of the features of a",
        "Maps of the features of b",
        "Segmentation of a",
    }
    assert found["Nearest neighbours of a"] == ("30", "20", (folders[0] / "figures" / "neighbours.png").read_bytes())
    assert "b: figures/neighbours.png is not a PNG picture and is left out" in [words for _, words in page.all("li")]


def test_downloads_hold_what_the_page_shows(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"a{s}", everything(s / 10), seed=s) for s in (0, 1)]
    folders.append(make_run(tmp_path / "ü,b", everything(), "moco"))
    table = compare(folders, tmp_path / "out")
    found = downloads(Page((tmp_path / "out" / "comparison.html").read_text("utf-8")))
    with (tmp_path / "out" / "comparison.csv").open(newline="", encoding="utf-8") as file:
        assert found["comparison.csv"] == list(csv.DictReader(file))
    assert [row["run"] for row in found["comparison.csv"]] == ["a0", "a1", "ü,b"]
    assert len(found["records.csv"]) == sum(len(run.records) for run in table.runs)
    assert json.loads(found["records.csv"][0]["details"])["k"] == 20
    assert [(r["seconds"], r["online/knn"]) for r in found["curves.csv"][:2]] == [("10.5", "0.25"), ("20.25", "0.5")]
    first = found["uncertainty.csv"][0]
    assert (first["configuration"], first["runs"], first["measure"]) == ("simclr, 2 seeds", "a0 a1", "kNN")
    assert [float(first[name]) for name in ("value", "low", "high")] == pytest.approx(
        [0.65, 0.65 - math.sqrt(0.005), 0.65 + math.sqrt(0.005)]
    )


def test_every_number_of_the_table_leads_to_its_protocol(tmp_path: Path) -> None:
    page, text = page_of([make_run(tmp_path / "a"), make_run(tmp_path / "b", method="moco")], tmp_path)
    links = {(a["href"], words) for a, words in page.all("a") if a["href"].startswith("#run")}
    assert {("#run0-knn", "60.0 %"), ("#run1-linear_probe", "80.0 %"), ("#run1-segmentation", "30.0 %")} <= links
    assert {"#run0-diagnostics", "#run1-diagnostics", "#run0-training", "#run1-training"} <= {href for href, _ in links}
    assert all(f'id="{href[1:]}"' in text for href, _ in links)
    knn, probe = page.text_of("run0-knn"), page.text_of("run1-linear_probe")
    assert "temperature0.07" in knn
    assert all(str(value) in knn for value in (0.6, 0.7, 20, 200, "digits", "test"))
    assert "learning_rates: 0.1, 1" in probe
    assert "settings" not in probe  # too long for a page


def test_the_legend_of_a_chart_names_the_runs_in_it_alone(tmp_path: Path) -> None:
    pixels = [record for record in everything() if record["protocol"] not in ("invariance", "layers")]
    _, text = page_of([make_run(tmp_path / "learned"), make_run(tmp_path / "pixels", pixels, "none")], tmp_path)
    for key in ("layers", "invariance"):
        section = text.partition(f'id="{key}"')[2].partition("</section>")[0]
        assert "</span>learned</li>" in section
        assert "</span>pixels</li>" not in section
    assert "</span>pixels</li>" in text


def test_runs_with_little_to_show_have_a_page(tmp_path: Path) -> None:
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "config.yaml").write_text("method: simclr\n")
    page, _ = page_of([tmp_path / "fresh"], tmp_path)
    assert [words for _, words in page.all("h2")] == ["Results"]
    assert any("has no kNN" in words for _, words in page.all("li"))
    old = make_run(tmp_path / "old", timed=False)
    page, _ = page_of([old, make_run(tmp_path / "new", method="moco")], tmp_path)
    assert any("old is not in the accuracy over wall time" in words for _, words in page.all("li"))
    assert "Accuracy over wall time" in [words for _, words in page.all("h2")]


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    spectrum = {"rank": [1, 0, 4, "x", 8], "value": [1.0, 0.5, float("nan"), 0.2, 0.0]}
    folder = make_run(tmp_path / "a", [record()])
    broken = [
        record("diagnostics", 3.0, "rank_me", "train", spectrum=spectrum),
        record("diagnostics", float("inf"), "uniformity"),
    ]
    broken += [record("invariance", 0.5, "alignment", operation="all"), record("layers", 0.5, layer="a", depth=None)]
    (folder / "results.json").write_text(json.dumps({"results": [record(), *broken]}))
    (folder / "metrics.csv").write_text("step,online/knn\n3,nan\n7,0.5\n")
    page, _ = page_of([folder], tmp_path)
    titles = [words for _, words in page.all("h2")]
    assert "Singular values" in titles
    assert "Alignment and uniformity" not in titles
    assert "Accuracy by layer" not in titles
    for tag, attributes, _ in page.elements:
        if tag in ("use", "path", "text"):
            assert not re.search(r"nan|inf", " ".join(attributes.values())), attributes
