"""Dense methods on photographs: pre-trained on Imagenette, judged by the segmentation of CamVid's street scenes.

    python benchmarks/camvid.py --root DIR                                    every run that is missing, then the tables
    python benchmarks/camvid.py --root DIR --networks resnet --methods densecl --epochs 3
    python benchmarks/camvid.py --table --page docs/dense.md                  the tables of what is there, and pictures

DIR holds ``imagenette/`` (``train/``, ``val/``) and ``camvid/`` (SegNet's split, laid out as PASCAL VOC). Every method
sees the same images as often, in the same network. Three judges look at it, once, at whole frames of CamVid: a linear
classifier of the frozen map (its learning rate chosen on ``val``), the nearest training cells of each cell, and full
fine-tuning with a light decoder. The measure is mean IoU on the test frames.

Each run is a process of its own. One that was stopped goes on from its last epoch and its last judge, and one that is
done is not repeated; a run that fails is told at the end. ``--rehearse`` takes a tiny network, few frames, one epoch.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measure import fill, hardware, processor_seconds, write
from standard import Clock
from torch import Tensor, nn

import selfsup
from selfsup.config import TrainConfig, load_config
from selfsup.data import load_splits
from selfsup.data.base import ImageDataset
from selfsup.eval import (
    Encoder,
    SegmentationFineTuneSettings,
    SegmentationKnnSettings,
    SegmentationSettings,
    segment,
    segmentation_fine_tune,
    segmentation_knn,
    segmentation_probe,
)
from selfsup.eval.pixels import by_name
from selfsup.eval.protocols.segmentation_fine_tune import Upsampled
from selfsup.nn import build_backbone
from selfsup.report.drawing import class_colour

METHODS = ("untrained", "simclr", "moco", "vicreg", "densecl", "pixpro", "pixcontrast")
DENSE = ("densecl", "pixpro", "pixcontrast")
JUDGES = {"linear": "linear", "cells": "kNN of cells", "fine_tuned": "fine-tuned"}
NETWORKS = {
    "resnet": ("backbone=resnet_narrow", "backbone.stem_stride=2"),
    "vit": (
        "backbone=vit_small",
        "backbone.kwargs={patch_size: 8, embed_dim: 96, depth: 4, num_heads: 3, dynamic_img_size: true}",
    ),
}
TRAINING = (
    *("data=imagenette", "data.source_size=80", "data.image_size=64", "batch_size=128", "optimizer=adamw"),
    *("optimizer.lr=0.002", "optimizer.scaling=none", "optimizer.weight_decay=0.05", "optimizer.warmup_epochs=1"),
    *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.progress=false", "online.every_epochs=0"),
)
TINY = ("backbone=convnet", "backbone.width=4", "backbone.blocks=[1,1,1]", "batch_size=16")
FRAME = (120, 160)  # of the scenes' 240 × 320, whole
SHOWN = 4


@dataclasses.dataclass(frozen=True)
class Run:
    """A line of the plan."""

    network: str
    method: str
    seed: int

    def folder(self, out: Path) -> Path:
        """Return its folder; beside it lies its result."""
        return out / self.network / f"{self.method}-seed{self.seed}"

    def result(self, out: Path) -> Path:
        """Return the file of what was measured so far; it says ``done`` when that is all."""
        folder = self.folder(out)
        return folder.with_name(f"{folder.name}.json")

    def read(self, out: Path) -> dict[str, Any]:
        """Return what was measured so far."""
        return json.loads(self.result(out).read_text()) if self.result(out).exists() else {}

    def config(self, options: argparse.Namespace) -> TrainConfig:
        """Return the settings of the training."""
        preset = "simclr" if self.method == "untrained" else self.method
        words = [f"experiment=cifar10/{preset}", *TRAINING, *NETWORKS[self.network]]
        words += [f"trainer.max_epochs={options.epochs}", *(TINY if options.rehearse else ())]
        place = options.root.absolute() / "imagenette"
        words += [f"data.root={place}", f"seed={self.seed}", f"run_dir={self.folder(options.out)}"]
        config: TrainConfig = load_config(words)
        return config


def street_scenes(root: Path, rehearse: bool) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
    """Return whole frames to train on, to choose on and to test on."""
    size = "[24,32]" if rehearse else f"[{FRAME[0]},{FRAME[1]}]"
    words = ["method=simclr", "data=camvid", f"data.root={root / 'camvid'}", f"data.image_size={size}"]
    splits = load_splits(load_config([*words, f"data.source_size={24 if rehearse else FRAME[0]}"]).data)
    assert splits.test is not None
    return splits.train, splits.holdout, splits.test


def judged(judge: str, encoder: Encoder, parts: Sequence[ImageDataset], run: Run, rehearse: bool) -> dict[str, Any]:
    """Return mean IoU, IoU of each class and the predicted masks of some test frames, by a judge."""
    train, held, test = parts
    few = test.subset(torch.linspace(0, len(test) - 1, min(SHOWN, len(test))).round().long())
    found: Any
    if judge == "linear":
        linear = SegmentationSettings(epochs=2 if rehearse else 20, batch_size=8)
        found = segmentation_probe(encoder, train, test, linear, holdout=held, seed=run.seed)
        chosen, masks = found.chosen.learning_rate, segment(encoder, found.classifier, few)[0]
    elif judge == "cells":
        found = segmentation_knn(encoder, train, test, SegmentationKnnSettings(batch_size=8), run.seed)
        chosen, masks = None, segment(encoder, found.bank, few)[0]
    else:
        tuning = SegmentationFineTuneSettings(
            learning_rates=[1e-3], epochs=1 if rehearse else 10, batch_size=4 if rehearse else 8, width=64
        )
        found = segmentation_fine_tune(encoder, train, test, tuning, holdout=held, seed=run.seed)
        tuned = dataclasses.replace(encoder, network=found.network)
        chosen, masks = found.learning_rate, segment(tuned, Upsampled(), few)[0]
    return {
        "miou": found.miou,
        "per_class": by_name(found.per_class, test),
        "pixel_accuracy": found.pixel_accuracy,
        "learning_rate": chosen,
        "shown": masks.to(torch.uint8).tolist(),
    }


def network_of(run: Run, options: argparse.Namespace) -> tuple[nn.Module, dict[str, float]]:
    """Train where that is not done; return the network and what the clock says."""
    config = run.config(options)
    if run.method == "untrained":
        facts = load_splits(dataclasses.replace(config.data, limit=None)).pretrain
        torch.manual_seed(run.seed)
        return build_backbone(config.backbone, facts.channels, facts.normalization), {}
    done = Clock.of(run.folder(options.out))
    if done is None or done["epochs"] < config.trainer.max_epochs:
        selfsup.train(dataclasses.replace(config, resume="auto"), [Clock()])
        done = Clock.of(run.folder(options.out))
    assert done is not None
    return selfsup.load_backbone(run.folder(options.out)), done


def work(run: Run, options: argparse.Namespace) -> None:
    """Train and judge, in this process, what of it is not done."""
    result = run.result(options.out)
    result.parent.mkdir(parents=True, exist_ok=True)
    saved = run.read(options.out)
    network, training = network_of(run, options)
    saved |= {**dataclasses.asdict(run), "epochs": options.epochs, "training": training, "machine": hardware()}
    saved |= {"rehearsal": options.rehearse}
    parts = street_scenes(options.root.absolute(), options.rehearse)
    encoder = Encoder(network, batch_size=8, progress=False)
    for judge in JUDGES:
        if judge in saved:
            continue
        before = processor_seconds()
        saved[judge] = judged(judge, encoder, parts, run, options.rehearse)
        saved[judge]["core_seconds"] = processor_seconds() - before
        saved["frames"] = [len(part) for part in parts]
        keep(result, saved)
    keep(result, saved | {"done": True})


def keep(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is there whole or not at all."""
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(content) + "\n")
    partial.rename(path)


def plan(options: argparse.Namespace) -> Iterator[Run]:
    """Give the runs that are asked for."""
    for seed, network, method in itertools.product(options.seeds, options.networks, options.methods):
        yield Run(network, method, seed)


def tables(runs: Sequence[Run], out: Path) -> str:
    """Write the tables of means and of classes, and return the Markdown."""
    results = [saved for run in runs if (saved := run.read(out)).get("linear")]
    means, classes = [], []
    for saved in results:
        training, name = saved["training"], {"network": saved["network"], "method": saved["method"]}
        found = {word: 100 * saved[judge]["miou"] if judge in saved else None for judge, word in JUDGES.items()}
        means.append(
            {
                **name,
                "dense": "yes" if saved["method"] in DENSE else "no",
                "epochs": saved["epochs"] if training else None,
                "core-seconds of training": round(training["processor_seconds"]) if training else None,
                **{f"{word}, mIoU %": value for word, value in found.items()},
            }
        )
        for judge, word in JUDGES.items():
            if judge in saved:
                shares = {key: 100 * value for key, value in saved[judge]["per_class"].items()}
                classes.append({**name, "judge": word, **shares})
    tiny = "REHEARSAL: tiny settings. " * any(saved["rehearsal"] for saved in results)
    epochs = ", ".join(sorted({str(saved["epochs"]) for saved in results})) or "no"
    frames = " / ".join(map(str, results[0]["frames"])) if results else "0"
    protocol = (
        f"{tiny}Imagenette, all training photographs, {epochs} epochs at batch 128, crops of 64 px, AdamW at 0.002; "
        f"CamVid, {frames} whole frames of {FRAME[0]} × {FRAME[1]} px to train, to choose and to test; mean IoU over "
        "the 11 classes. Linear: 20 epochs, learning rate of 0.1, 1 and 10 chosen on val. Cells: k = 30, temperature "
        "0.02, 20,000 cells. Fine-tuned: 10 epochs, AdamW at 0.001, a decoder of two convolutions. One seed a row."
    )
    return (
        f"{write(out, 'camvid', means, protocol)}\n\n{write(out, 'camvid_classes', classes, 'IoU of each class, %.')}"
    )


def picture(runs: Sequence[Run], options: argparse.Namespace) -> Path | None:
    """Draw test frames, their masks and those of each linear classifier, for the first network that has some."""
    chosen = [(run, saved) for run in runs if (saved := run.read(options.out)).get("linear")]
    chosen = [(run, saved) for run, saved in chosen if run.network == chosen[0][0].network]
    if not chosen:
        return None
    test = street_scenes(options.root.absolute(), options.rehearse)[2]
    few = test.subset(torch.linspace(0, len(test) - 1, min(SHOWN, len(test))).round().long())
    every, classes = torch.arange(len(few)), len(test.classes or ())
    truth = few.read_masks(every)
    assert truth is not None
    rows: list[tuple[str, Sequence[Tensor]]] = [("frame", list(few.read(every).permute(0, 2, 3, 1)))]
    palette = torch.ones(256, 3)
    palette[: classes + 1] = torch.tensor([(0.15,) * 3, *(class_colour(c, classes)[:3] for c in range(classes))])
    rows.append(("truth", list(palette[truth.long()])))
    rows += [(run.method, list(palette[torch.tensor(saved["linear"]["shown"])])) for run, saved in chosen]
    figure = Figure(figsize=(2.2 * len(few), 1.7 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(few), squeeze=False)
    for line, (name, pictures) in zip(axes, rows, strict=True):
        line[0].set_ylabel(name)
        for place, shown in zip(line, pictures, strict=True):
            place.imshow(shown.numpy(), interpolation="nearest")
            place.set(xticks=[], yticks=[])
    path = Path(options.out) / "camvid.png"
    figure.savefig(path, dpi=80)
    return path


def launch(words: Sequence[str]) -> int:
    """Run this program with arguments in a process of its own, and return its code."""
    return subprocess.run([sys.executable, __file__, *words], check=False).returncode


def run_all(runs: Sequence[Run], options: argparse.Namespace) -> list[str]:
    """Do what is missing, each in a process of its own; return what failed."""
    failed = []
    for number, run in enumerate(runs, 1):
        if run.read(options.out).get("done"):
            continue
        name = f"{run.network}, {run.method}, seed {run.seed}"
        print(f"{number} of {len(runs)}: {name}", flush=True)
        words = [f"--{key}={getattr(options, key)}" for key in ("root", "out", "threads", "epochs")]
        words += [f"--work={json.dumps(dataclasses.asdict(run))}", *["--rehearse"] * options.rehearse]
        if code := launch(words):
            failed.append(f"{name} ended with code {code}")
    return failed


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=20, help="over Imagenette")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with imagenette/ and camvid/")
    parser.add_argument("--out", type=Path, default=Path("runs/camvid"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="write the tables of what is there and stop")
    parser.add_argument("--page", type=Path, help="also put them and a picture into this page: docs/dense.md")
    parser.add_argument("--rehearse", action="store_true", help="a tiny network and small frames")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.work:
        work(Run(**json.loads(options.work)), options)
        return
    runs = list(plan(options))
    failed = [] if options.table else run_all(runs, options)
    text = tables(runs, options.out)
    print(text)
    drawn = picture(runs, options)
    if options.page:
        fill(options.page, {"camvid": text.strip()})
        if drawn is not None:
            shutil.copy(drawn, options.page.parent / "images" / "camvid.png")
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
