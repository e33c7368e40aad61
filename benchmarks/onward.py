"""Training on: from weights of one kind of image on another, with and without an anchor; what is won and what is lost.

    python benchmarks/onward.py --root DIR                    CIFAR-10 to Imagenette and back, on one CPU core
    python benchmarks/onward.py --root DIR --table            the table and the picture of what is there
    python benchmarks/onward.py --root DIR --rehearse         two short epochs of a tiny network

DIR holds ``cifar10/`` (``train/CLASS/``, ``test/CLASS/``: a copy as JPEG) and ``imagenette/`` (``train/``, ``val/``). A
network is trained on one of them, then trained on on the other in every way of ``WAYS``. After each epoch its kNN
accuracy is measured on both; epoch 0 is that of the original weights. Whatever is done is not done again: training goes
on from its last epoch, each measured epoch is a line of a file, and each whole curve a JSON file. The table and the
picture also show what ``kept/onward/`` keeps of other machines, where there is no result of this one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import fill, hardware, write

import selfsup
from selfsup.config import load_config
from selfsup.data import ImageDataset, load_splits
from selfsup.eval import extract_features, knn
from selfsup.report.drawing import new_figure, save
from selfsup.report.style import DASHES, QUIET, colour, marker

KEPT = Path(__file__).parent / "kept" / "onward"
DATA = ("cifar10", "imagenette")
WAYS: dict[str, tuple[str, ...]] = {
    "free": (),
    "gram": ("backbone.anchor=gram", "backbone.anchor_weight=20"),
    "cosine": ("backbone.anchor=cosine", "backbone.anchor_weight=2"),
}
IMAGES, QUERIES, K, TEMPERATURE = 8000, 2000, 20, 0.07
FIRST, ON, WARM = 15, 5, 1
COMMON = (
    "experiment=small/simclr",
    "data.image_size=32",
    "data.mean=[0.485,0.456,0.406]",
    "data.std=[0.229,0.224,0.225]",
    f"data.limit={IMAGES}",
    "data.workers=0",
    "online.every_epochs=0",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.progress=false",
    "trainer.keep_every_epochs=1",
)
#: Where they differ from the preset, for training on.
LATER = ("optimizer.lr=0.003", f"trainer.max_epochs={ON}", f"backbone.freeze_epochs={WARM}")
TINY = ("backbone.width=4", "data.limit=256", "trainer.max_epochs=2")


def images(root: Path, data: str) -> tuple[str, ...]:
    """Return the settings of a kind of image."""
    return ("data=image_folder" if data == "cifar10" else "data=imagenette", f"data.root={root / data}")


class Parts:
    """The images that accuracies are measured on, read once: neighbours and queries of each kind."""

    def __init__(self, root: Path, rehearse: bool) -> None:
        self.root, self.rehearse = root, rehearse
        self._known: dict[str, tuple[ImageDataset, ImageDataset]] = {}

    def of(self, data: str) -> tuple[ImageDataset, ImageDataset]:
        """Return the labelled training images and, evenly out of all of them, the test images."""
        if data not in self._known:
            words = [*COMMON, *images(self.root, data), *(TINY if self.rehearse else ())]
            splits = load_splits(load_config(words).data)
            assert splits.test is not None
            every = max(1, len(splits.test) // (100 if self.rehearse else QUERIES))
            self._known[data] = splits.train, splits.test.subset(torch.arange(0, len(splits.test), every))
        return self._known[data]

    def accuracy(self, network: torch.nn.Module, data: str) -> float:
        """Return the kNN accuracy of a network on one kind of image."""
        bank, queries = (extract_features(network, part, progress=False) for part in self.of(data))
        k = min(K, len(bank))
        return knn(bank, queries, (k,), TEMPERATURE)[k]


def train(folder: Path, words: list[str]) -> None:
    """Train a run, or go on with it; one that is done stays."""
    config = load_config([*words, f"run_dir={folder}", "resume=auto"])
    if not (folder / "checkpoints" / f"epoch-{config.trainer.max_epochs:04d}.ckpt").exists():
        selfsup.train(config)


def measured(file: Path) -> list[dict[str, Any]]:
    """Return what a file of lines holds."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def work(out: Path, root: Path, rehearse: bool, sources: Sequence[str] = DATA) -> None:
    """Do what is missing."""
    parts = Parts(root, rehearse)
    tiny = TINY if rehearse else ()
    for way in WAYS:
        for source in sources:
            target = next(data for data in DATA if data != source)
            name = f"{source}-{target}-{way}"
            if (out / f"{name}.json").exists():
                continue
            train(out / source, [*COMMON, *images(root, source), f"trainer.max_epochs={FIRST}", *tiny])
            begin = f"backbone.from={out / source}"
            train(out / name, [*COMMON, *images(root, target), begin, *LATER, *WAYS[way], *tiny])
            measure(out / name, source, target, parts)
            curve = sorted(measured(out / name / "curve.jsonl"), key=lambda line: line["epoch"])
            found = {"source": source, "target": target, "way": way, "curve": curve}
            partial = out / f"{name}.part"
            partial.write_text(json.dumps({**found, "machine": hardware(), "rehearsal": rehearse}, indent=1) + "\n")
            partial.rename(out / f"{name}.json")  # what was stopped leaves nothing that looks done


def measure(run: Path, source: str, target: str, parts: Parts) -> None:
    """Measure the epochs of a run that are not measured yet."""
    file = run / "curve.jsonl"
    done = {line["epoch"] for line in measured(file)}
    kept = {int(path.stem.removeprefix("epoch-")): path for path in (run / "checkpoints").glob("epoch-*.ckpt")}
    for epoch, path in sorted({0: run / "start", **kept}.items()):
        if epoch not in done:
            network = selfsup.load_backbone(path)
            found = {data: parts.accuracy(network, data) for data in (source, target)}
            with file.open("a") as lines:
                lines.write(json.dumps({"epoch": epoch, "source": found[source], "target": found[target]}) + "\n")


def curves(out: Path) -> Iterator[tuple[str, str, str, list[dict[str, Any]]]]:
    """Give the curves that are there: source, target, way and the measured epochs in order."""
    for source, target in (DATA, DATA[::-1]):
        for way in WAYS:
            name = f"{source}-{target}-{way}.json"
            file = next((folder / name for folder in (out, KEPT) if (folder / name).exists()), None)
            if file is not None:
                yield source, target, way, json.loads(file.read_text())["curve"]


def rows(out: Path) -> Iterator[Mapping[str, Any]]:
    """Give the rows of the table: the original weights, then the last epoch of every way."""
    told = set()
    for source, target, way, lines in curves(out):
        for line in (lines[0], lines[-1]):
            if line["epoch"] == 0 and (source, target) in told:
                continue
            told.add((source, target))
            yield {
                "from": source,
                "on": target,
                "way": "original weights" if line["epoch"] == 0 else way,
                "epochs": line["epoch"],
                "kNN on the target, %": f"{100 * line['target']:.1f}",
                "kNN on the source, %": f"{100 * line['source']:.1f}",
            }


def picture(out: Path, path: Path) -> None:
    """Draw target and source accuracy over the epochs, one column a direction."""
    found = list(curves(out))
    directions = list(dict.fromkeys(curve[:2] for curve in found)) or [DATA]
    figure = new_figure(0.7 + 3.9 * len(directions), 5.6)
    axes = figure.subplots(2, len(directions), sharex=True, squeeze=False)
    for source, target, way, lines in found:
        column, style = directions.index((source, target)), list(WAYS).index(way)
        for row, which in enumerate(("target", "source")):
            place = axes[row][column]
            epochs, values = [line["epoch"] for line in lines], [100 * line[which] for line in lines]
            look = {"color": colour(style), "marker": marker(style), "linestyle": DASHES[style]}
            place.plot(epochs, values, **look, markersize=4, label=way)
            if way == next(iter(WAYS)):
                place.axhline(values[0], color=QUIET, linewidth=0.8, label="original weights")
            place.xaxis.get_major_locator().set_params(integer=True)
            place.set_ylabel(f"{which}: kNN on {(target, source)[row]}, %")
            place.spines[["top", "right"]].set_visible(False)
        axes[0][column].set_title(f"{source} → {target}", fontsize=10)
        axes[1][column].set_xlabel("epochs of training on; 0 is the original weights")
    axes[0][0].legend(frameon=False, title="anchor", fontsize=8)
    save(figure, path)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with cifar10/ and imagenette/")
    parser.add_argument("--sources", nargs="+", choices=DATA, default=DATA, help="what is trained on first; both")
    parser.add_argument("--out", type=Path, default=Path("runs/onward"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="write table and picture of what is there and stop")
    parser.add_argument("--page", type=Path, help="also put the table between the marks of this page: docs/onward.md")
    parser.add_argument("--picture", type=Path, help="the picture's file; else onward.png in the folder")
    parser.add_argument("--rehearse", action="store_true", help="two short epochs of a tiny network")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.table:
        work(options.out, options.root.absolute(), options.rehearse, options.sources)
    tiny = "REHEARSAL: tiny settings. " if options.rehearse else ""
    protocol = (
        f"{tiny}SimCLR of experiment=small/simclr (a plain convolutional network of 0.3 M weights, 32 px, AdamW, batch "
        f"128), {IMAGES:,} training images of each kind, seed 0: {FIRST} epochs from random weights on one kind, then "
        f"{ON} on the other at half the learning rate, in the first of which heads alone learn. kNN: k = {K}, "
        f"temperature {TEMPERATURE}, the training images without the hold-out as neighbours, every n-th test image as "
        f"a query, about {QUERIES:,}. Both kinds are normalised alike."
    )
    text = write(options.out, "onward", list(rows(options.out)), protocol)
    picture(options.out, options.picture or options.out / "onward.png")
    print(text)
    if options.page:
        fill(options.page, {"onward": text.strip()})


if __name__ == "__main__":
    main()
