"""Seconds of training until kNN reaches a target on held-out images: our SimCLR preset beside lightly's example.

    pip install lightly
    python benchmarks/speedrun.py                                            everything; what is there is not repeated
    python benchmarks/speedrun.py --data cifar10 --root DIR                  to 55, 60 and 65 % on CIFAR-10
    python benchmarks/speedrun.py train --contenders selfsup --seeds 0       one run
    python benchmarks/speedrun.py judge                                      then: python benchmarks/speedrun.py table

``races.py`` has the kinds of data; DIR holds ``cifar10/`` (``train/CLASS/``, ``test/CLASS/``: a copy as JPEG).

``train`` gives each (contender, seed) a process of its own, one after the other, all contenders of a seed before the
next seed. A process trains for ``--seconds``, or to the end of its schedule, and copies the backbone's weights every
few thousand images, each copy with the seconds since the first step began, and with those that all cores worked.
Nothing is evaluated meanwhile: for every contender the clock holds training alone, and no data loader gets ahead of it
while an evaluation runs.

``judge`` looks at the copies in order, by one evaluator for all, until one reaches the last target on held-out training
images; it looks at the test images once for a target, with the copy that reached it. ``table`` writes
``OUT/speedrun.json``, ``speedrun.md`` and ``speedrun.png``. ``--rehearse`` runs all of it with a tiny network.

Network, images and threads are the same for all. A process uses the GPU where there is one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measure import processor_seconds, synchronize, write
from races import RACES, TINY, TINY_IMAGES, Race
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_pil_image

import selfsup
from selfsup.config import TrainConfig, load_config
from selfsup.data import load_splits
from selfsup.data.base import ImageDataset
from selfsup.eval import FeatureSet, extract_features, knn, raw_pixels
from selfsup.eval.subject import evenly
from selfsup.nn import build_backbone

ALONE = ("online.every_epochs=0", "trainer.devices=1", "trainer.progress=false")  # the rest of a run is as always
RIVAL = "lightly"
CONTENDERS = ("selfsup", RIVAL)


class Copies(pl.Callback):
    """Copies the backbone's weights every so many images, with the seconds since the first step began."""

    def __init__(self, batch_size: int, every_images: int, seconds: float) -> None:
        self.batch_size, self.every, self.limit = batch_size, every_images, seconds
        self.first_step = 0.0  # on the clock of the machine
        self.copies: list[dict[str, Any]] = []
        self._start = self._worked = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            self.first_step, self._start, self._worked = time.time(), time.perf_counter(), processor_seconds()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        images = trainer.global_step * self.batch_size
        due = images // self.every > (images - self.batch_size) // self.every
        if not due and trainer.global_step < trainer.estimated_stepping_batches:
            return
        synchronize()
        seconds, worked = time.perf_counter() - self._start, processor_seconds() - self._worked
        state = {name: value.to("cpu", copy=True) for name, value in module.backbone.state_dict().items()}
        self.copies.append({"images": images, "seconds": seconds, "core_seconds": worked, "state": state})
        if seconds > self.limit:
            trainer.should_stop = True


class Pictures(Dataset[tuple[Any, int]]):
    """Images in memory, one by one, as lightly's transforms take them."""

    transform: Any = None  # set by LightlyDataset, as for torchvision's datasets

    def __init__(self, images: ImageDataset) -> None:
        self.pixels = images.read(torch.arange(len(images)))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, item: int) -> tuple[Any, int]:
        return self.transform(to_pil_image(self.pixels[item])), 0


def theirs(config: TrainConfig, copies: Copies) -> dict[str, Any]:
    """Train lightly's example with the network and the images of our preset, and return its settings."""
    try:
        from rivals import Example, loader, transform_for
    except ImportError as error:
        raise SystemExit("This comparison needs lightly; install it: pip install lightly") from error
    images = load_splits(config.data).pretrain
    normalize = {"mean": list(images.normalization.mean), "std": list(images.normalization.std)}
    network = build_backbone(config.backbone, images.channels, images.normalization)
    module = Example(network, Example.BATCH, epochs=1)
    workers = 0 if config.data.workers == 0 else 2
    batches = loader(
        Pictures(images), transform_for("example", int(images.image_size), normalize), Example.BATCH, workers
    )
    copies.batch_size = Example.BATCH
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=1000, devices=1, enable_model_summary=False, callbacks=[copies], **quiet)
    trainer.fit(module, batches)  # until the copies stop it
    return {"batch_size": Example.BATCH, "workers": workers, "of": "lightly 1.6, examples/pytorch_lightning/simclr.py"}


def work(name: str, seed: int, arguments: argparse.Namespace) -> None:
    """Train one contender with one seed, in this process, and save what was copied on the way."""
    imports = time.time() - arguments.launched  # and the interpreter
    torch.set_num_threads(arguments.threads)
    path = run_path(arguments, name, seed)
    folder = path.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    race = race_of(arguments)
    config = load_config([*changed(race, arguments), f"seed={seed}", f"run_dir={folder}", *ALONE])
    copies = Copies(config.batch_size, race.every_images, race.seconds)
    settings = asdict(config)
    if name == "selfsup":
        selfsup.train(config, [copies])
    else:
        pl.seed_everything(seed, verbose=False)
        settings = theirs(config, copies)
    facts = {
        "contender": name,
        "seed": seed,
        "settings": settings,
        "imports": imports,
        "before_first_step": copies.first_step - arguments.launched,  # imports, data, network, compilation
    }
    torch.save({**facts, "copies": copies.copies}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)  # a run that was stopped leaves nothing that looks done


def race_of(arguments: argparse.Namespace) -> Race:
    """Return the race that is asked for."""
    race = RACES[arguments.data]
    race = replace(race, seconds=arguments.seconds or race.seconds, targets=tuple(arguments.targets or race.targets))
    return replace(race, every_images=TINY_IMAGES, targets=(0.0, 2.0)) if arguments.rehearse else race


def changed(race: Race, arguments: argparse.Namespace) -> list[str]:
    """Return the settings of a training of ours, in the order in which they count."""
    return [*race.settings(arguments.root), *(TINY if arguments.rehearse else ()), *arguments.settings]


def run_path(arguments: argparse.Namespace, name: str, seed: int) -> Path:
    """Return where a run is kept."""
    return Path(arguments.out) / f"{name}-seed{seed}.pt"


def train(arguments: argparse.Namespace) -> None:
    """Train what is not there yet, each run in a process of its own, the contenders of a seed one after the other."""
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for name in arguments.contenders:
            if not run_path(arguments, name, seed).exists():
                print(f"{name}, seed {seed}", flush=True)
                words = [f"--contenders={name}", f"--seeds={seed}", f"--launched={time.time()}"]
                words += [
                    f"--{key}={value}"
                    for key in ("data", "root", "out", "threads", "seconds")
                    if (value := getattr(arguments, key))
                ]
                words += ["--rehearse"] * arguments.rehearse
                command = [sys.executable, __file__, "work", *words, "--settings", *arguments.settings]
                subprocess.run(command, check=True)


class Judge:
    """One evaluator for all: kNN with the race's images."""

    def __init__(self, race: Race, settings: Sequence[str]) -> None:
        self.race, self.config = race, load_config(settings)
        self.splits = load_splits(self.config.data)
        self.bank, self.queries = evenly(self.splits.train, race.bank), evenly(self.splits.holdout, race.queries)
        self.network = self.untrained(0)

    def untrained(self, seed: int) -> nn.Module:
        """Return the network with random weights."""
        torch.manual_seed(seed)
        pretrain = self.splits.pretrain
        network = build_backbone(self.config.backbone, pretrain.channels, pretrain.normalization)
        network.to(memory_format=torch.channels_last)
        return network.cuda() if torch.cuda.is_available() else network

    def held_out(self) -> float:
        """Return the accuracy of the network on held-out images."""
        return self.accuracy(self.features(self.bank), self.features(self.queries))

    def test(self) -> float:
        """Return the accuracy of the network on the test images, with all training images as neighbours."""
        return self.accuracy(self.features(self.splits.train), self.features(self.splits.test))

    def features(self, part: Any) -> FeatureSet:
        return extract_features(self.network, part, progress=False)

    def accuracy(self, bank: FeatureSet, queries: FeatureSet) -> float:
        """Return the accuracy of weighted kNN."""
        k = min(self.race.k, len(bank))
        return knn(bank, queries, k, self.race.temperature)[k]


def judge(arguments: argparse.Namespace) -> None:
    """Find in every run the first copy that reaches each target, and its accuracy on the test images."""
    out, race = Path(arguments.out), race_of(arguments)
    referee = Judge(race, changed(race, arguments))
    baselines = out / "baselines.json"
    if not baselines.exists():
        values = {"raw pixels": referee.accuracy(raw_pixels(referee.bank), raw_pixels(referee.queries))}
        untrained = []
        for seed in arguments.seeds:
            referee.network = referee.untrained(seed)
            untrained.append(referee.held_out())
        values["untrained network"] = statistics.mean(untrained)
        baselines.write_text(json.dumps(values, indent=2) + "\n")
    for seed in arguments.seeds:
        for name in arguments.contenders:
            path = run_path(arguments, name, seed)
            if path.exists():
                judge_run(path, referee, race.targets)


def judge_run(path: Path, referee: Judge, targets: Sequence[float]) -> None:
    """Add to a run's JSON what is not known yet: held-out accuracies up to the last target, and on test images."""
    saved, known = torch.load(path, weights_only=True), path.with_suffix(".json")
    copies = saved.pop("copies")
    curve = json.loads(known.read_text())["curve"] if known.exists() else []
    for position, copy in enumerate(copies):
        if position == len(curve):
            referee.network.load_state_dict(copy["state"])
            curve.append({key: copy[key] for key in copy if key != "state"} | {"held_out": referee.held_out()})
            known.write_text(json.dumps({**saved, "curve": curve}, indent=2) + "\n")
        here = {"curve": curve[: position + 1]}
        if any(reached(here, target) is curve[position] for target in targets) and "test" not in curve[position]:
            referee.network.load_state_dict(copy["state"])
            curve[position]["test"] = referee.test()
        if reached(here, max(targets)):
            break
    known.write_text(json.dumps({**saved, "curve": curve}, indent=2) + "\n")
    print(path.stem, " ".join(f"{p['seconds']:.0f}s:{100 * p['held_out']:.1f}" for p in curve), flush=True)


def reached(run: dict[str, Any], target: float) -> dict[str, Any] | None:
    """Return the first point of a run's curve that is at the target."""
    return next((point for point in run["curve"] if point["held_out"] >= target), None)


def table(arguments: argparse.Namespace) -> None:
    """Write the JSON, the Markdown and the picture."""
    out, race = Path(arguments.out), race_of(arguments)
    baselines = json.loads((out / "baselines.json").read_text())
    files = [run_path(arguments, n, s).with_suffix(".json") for n in arguments.contenders for s in arguments.seeds]
    runs = [json.loads(file.read_text()) for file in files if file.exists()]
    protocol = (
        f"{'REHEARSAL: tiny settings. ' * arguments.rehearse}{race.words}. Seconds of training until the target is "
        f"reached by kNN (k = {race.k}, temperature {race.temperature}) of up to {race.queries:,} held-out training "
        f"images among up to {race.bank:,} training images, looked at every {race.every_images:,} images; evaluation "
        "is not in the time. Core-seconds: user and system, of the process and its workers. By the same measure: "
        + ", ".join(f"{name} {value:.1%}" for name, value in baselines.items())
        + ". Test: all training images as neighbours."
    )
    picture(runs, race.targets, baselines, out / "speedrun.png")
    rows = [
        {"target": f"{target:.0%}", **line}
        for target in race.targets
        for line in (*summaries(runs, target), *(row(run, target) for run in runs))
    ]
    print(write(out, "speedrun", rows, protocol))


def row(run: dict[str, Any], target: float) -> dict[str, Any]:
    """Return the table's row of a run."""
    point, before, curve = reached(run, target), run["before_first_step"], run["curve"]
    seen = point or curve[-1]
    worked = seen.get("core_seconds")
    return {
        "contender": run["contender"],
        "seed": run["seed"],
        "seconds to the target": f"not in {seen['seconds']:.0f}" if point is None else round(seen["seconds"], 1),
        "core-seconds": f"not in {worked:.0f}" if point is None and worked else worked and round(worked, 1),
        "images seen": f"{seen['images']:,}",
        "held-out": f"{point['held_out'] if point else max(p['held_out'] for p in curve):.1%}",
        "test": f"{point['test']:.1%}" if point else None,
        "start and imports, s": round(run["imports"], 1),
        "before the first step, s": round(before, 1),
        "everything, s": round(before + point["seconds"], 1) if point else None,
    }


def summaries(runs: Sequence[dict[str, Any]], target: float) -> list[dict[str, Any]]:
    """Return a row for each contender: the median over its seeds where all of them reached the target."""
    found: list[dict[str, Any]] = []
    for name in dict.fromkeys(run["contender"] for run in runs):
        own = [run for run in runs if run["contender"] == name]
        points = [point for run in own if (point := reached(run, target))]
        line: dict[str, Any] = {"contender": name, "seed": f"{len(points)} of {len(own)} reached it"}
        if len(points) == len(own):
            whole = [run["before_first_step"] + p["seconds"] for run, p in zip(own, points, strict=True)]
            line["seconds to the target"] = f"median {statistics.median(p['seconds'] for p in points):.1f}"
            if all("core_seconds" in p for p in points):
                line["core-seconds"] = f"median {statistics.median(p['core_seconds'] for p in points):.1f}"
            line["test"] = f"mean {statistics.mean(p['test'] for p in points):.1%}"
            line["everything, s"] = f"median {statistics.median(whole):.1f}"
        found.append(line)
    return found


def picture(runs: Sequence[dict[str, Any]], targets: Sequence[float], baselines: dict[str, float], path: Path) -> None:
    """Draw accuracy over seconds, a line a run."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colors = dict(zip(dict.fromkeys(run["contender"] for run in runs), ("C0", "C1", "C2"), strict=False))
    named = set()
    for run in runs:
        name, curve = run["contender"], run["curve"]
        label = None if name in named else name
        named.add(name)
        x, y = [p["seconds"] for p in curve], [100 * p["held_out"] for p in curve]
        axes.plot(x, y, color=colors[name], marker="o", markersize=3, linewidth=1.2, label=label)
    for target in targets:
        axes.axhline(100 * target, color="black", linewidth=1, label=f"target, {target:.1%}")
    for (name, value), style in zip(baselines.items(), ("--", ":"), strict=True):
        axes.axhline(100 * value, color="gray", linewidth=1, linestyle=style, label=name)
    axes.set(xlabel="seconds of training", ylabel="kNN accuracy on held-out images, %", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["all", "train", "judge", "table", "work"], default="all")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", choices=list(RACES), default="fashion_mnist")
    parser.add_argument("--root", type=Path, help="folder with cifar10/")
    parser.add_argument("--targets", nargs="+", type=float, help="in place of the race's own")
    parser.add_argument("--seconds", type=float, help="of training, when a schedule does not end before")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--settings", nargs="*", default=[], help="what to change in the preset: key=value")
    parser.add_argument("--out", help="runs/speedrun, for other data runs/speedrun-DATA")
    parser.add_argument("--rehearse", action="store_true", help="a tiny network, on the CPU")
    parser.add_argument("--launched", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out = arguments.out or f"runs/speedrun{'' if arguments.data == 'fashion_mnist' else f'-{arguments.data}'}"
    if arguments.what == "work":
        work(arguments.contenders[0], arguments.seeds[0], arguments)
        return
    for name, part in (("train", train), ("judge", judge), ("table", table)):
        if arguments.what in ("all", name):
            part(arguments)


if __name__ == "__main__":
    main()
