"""Seconds of training until kNN reaches a target on held-out images: our SimCLR preset beside lightly's example.

    pip install lightly
    python benchmarks/speedrun.py                                            everything; what is there is not repeated
    python benchmarks/speedrun.py train --contenders selfsup --seeds 0       one run
    python benchmarks/speedrun.py judge                                      then: python benchmarks/speedrun.py table

``train`` gives each (contender, seed) a process of its own, one after the other, all contenders of a seed before the
next seed. A process trains for ``--seconds``, or to the end of its schedule, and copies the backbone's weights every
``EVERY_IMAGES`` images, each copy with the seconds since the first step began. Nothing is evaluated meanwhile: for
every contender the clock holds training alone, and no data loader gets ahead of it while an evaluation runs.

``judge`` looks at the copies in order, by one evaluator for all, until one reaches ``--target`` on held-out training
images; only then does it look at the test images, once, with that copy. ``table`` writes ``OUT/speedrun.json``,
``speedrun.md`` and ``speedrun.png``.

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measure import write
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import selfsup
from selfsup.config import TrainConfig, load_config
from selfsup.data import load_splits
from selfsup.eval import FeatureSet, extract_features, knn, raw_pixels
from selfsup.nn import build_backbone

PRESET = "experiment=fashion_mnist_fast"
ALONE = ("online.every_epochs=0", "trainer.devices=1", "trainer.progress=false")  # the rest of a run is as always
EVERY_IMAGES = 5000
BANK, QUERIES = 5000, 2000  # of the training and of the held-out images, for the look at every copy
K, TEMPERATURE = 20, 0.07


@dataclass(frozen=True)
class Lightly:
    """Settings of lightly's SimCLR example for CIFAR-10 (examples/pytorch_lightning/simclr.py, 1.6.0).

    Published: batch 256, head 512-2048-2048 on a ResNet-18, temperature 0.5, SGD without momentum at 0.06, no schedule,
    crops from 0.08, colour strength 1. Left out is the blur, which costs time and hurts at this size.
    """

    batch_size: int = 256
    head: tuple[int, int] = (2048, 2048)
    temperature: float = 0.5
    lr: float = 0.06
    momentum: float = 0.0
    weight_decay: float = 0.0
    min_scale: float = 0.08
    strength: float = 1.0
    workers: int = 2


RIVALS = {"lightly": Lightly()}
CONTENDERS = ("selfsup", *RIVALS)


class Copies(pl.Callback):
    """Copies the backbone's weights every ``EVERY_IMAGES`` images, with the seconds since the first step began."""

    def __init__(self, batch_size: int, seconds: float) -> None:
        self.batch_size, self.limit = batch_size, seconds
        self.first_step = 0.0  # on the clock of the machine
        self.copies: list[dict[str, Any]] = []
        self._start = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            self.first_step, self._start = time.time(), time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        images = trainer.global_step * self.batch_size
        due = images // EVERY_IMAGES > (images - self.batch_size) // EVERY_IMAGES
        if not due and trainer.global_step < trainer.estimated_stepping_batches:
            return
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._start
        state = {name: value.to("cpu", copy=True) for name, value in module.backbone.state_dict().items()}
        self.copies.append({"images": images, "seconds": seconds, "state": state})
        if seconds > self.limit:
            trainer.should_stop = True


def theirs(name: str, config: TrainConfig, copies: Copies) -> None:
    """Train lightly's example with the network and the images of our preset."""
    try:
        from lightly.data import LightlyDataset
        from lightly.data.multi_view_collate import MultiViewCollate
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.transforms.simclr_transform import SimCLRTransform
    except ImportError as error:
        raise SystemExit("This comparison needs lightly; install it: pip install lightly") from error
    from torchvision.transforms.functional import to_pil_image

    settings, splits = RIVALS[name], load_splits(config.data)
    pixels = splits.pretrain.read(torch.arange(len(splits.pretrain)))
    statistics = splits.pretrain.normalization

    class Images(Dataset[tuple[Any, int]]):
        transform: Any = None  # set by LightlyDataset, as for torchvision's datasets

        def __len__(self) -> int:
            return len(pixels)

        def __getitem__(self, item: int) -> tuple[Any, int]:
            return self.transform(to_pil_image(pixels[item])), 0

    class SimCLR(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = build_backbone(config.backbone, splits.pretrain.channels, statistics)
            self.projection_head = SimCLRProjectionHead(self.backbone.dim, *settings.head)
            self.criterion = NTXentLoss(temperature=settings.temperature)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            (view0, view1), _, _ = batch
            z0, z1 = (self.projection_head(self.backbone(view)) for view in (view0, view1))
            return self.criterion(z0, z1)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(
                self.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
            )

    transform = SimCLRTransform(
        input_size=config.data.image_size,
        gaussian_blur=0.0,
        min_scale=settings.min_scale,
        cj_strength=settings.strength,
        normalize={"mean": list(statistics.mean), "std": list(statistics.std)},
    )
    loader = DataLoader(
        LightlyDataset.from_torch_dataset(Images(), transform=transform),
        batch_size=settings.batch_size,
        collate_fn=MultiViewCollate(),
        shuffle=True,
        drop_last=True,
        num_workers=settings.workers,
    )
    trainer = pl.Trainer(
        max_epochs=1000,  # until the copies stop it
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[copies],
    )
    trainer.fit(SimCLR(), loader)


def work(name: str, seed: int, arguments: argparse.Namespace) -> None:
    """Train one contender with one seed, in this process, and save what was copied on the way."""
    imports = time.time() - arguments.launched  # and the interpreter
    torch.set_num_threads(arguments.threads)
    path = run_path(arguments, name, seed)
    folder = path.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    config = load_config([PRESET, *arguments.settings, f"seed={seed}", f"run_dir={folder}", *ALONE])
    batch_size = config.batch_size if name == "selfsup" else RIVALS[name].batch_size
    copies = Copies(batch_size, arguments.seconds)
    if name == "selfsup":
        selfsup.train(config, [copies])
    else:
        pl.seed_everything(seed, verbose=False)
        theirs(name, config, copies)
    facts = {
        "contender": name,
        "seed": seed,
        "settings": asdict(config) if name == "selfsup" else asdict(RIVALS[name]),
        "imports": imports,
        "before_first_step": copies.first_step - arguments.launched,  # imports, data, network, compilation
    }
    torch.save({**facts, "copies": copies.copies}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)  # a run that was stopped leaves nothing that looks done


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
                settings = [
                    f"--out={arguments.out}",
                    f"--threads={arguments.threads}",
                    f"--seconds={arguments.seconds}",
                ]
                command = [sys.executable, __file__, "work", f"--contenders={name}", f"--seeds={seed}", *settings]
                changed = ["--settings", *arguments.settings]
                subprocess.run([*command, f"--launched={time.time()}", *changed], check=True)


class Judge:
    """One evaluator for all: kNN with the preset's images."""

    def __init__(self, settings: Sequence[str] = ()) -> None:
        self.config = load_config([PRESET, *settings])
        self.splits = load_splits(self.config.data)
        self.bank = self.splits.train.subset(torch.arange(min(BANK, len(self.splits.train))))
        self.queries = self.splits.holdout.subset(torch.arange(min(QUERIES, len(self.splits.holdout))))
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
        return accuracy(self.features(self.bank), self.features(self.queries))

    def test(self) -> float:
        """Return the accuracy of the network on the test images, with all training images as neighbours."""
        return accuracy(self.features(self.splits.train), self.features(self.splits.test))

    def features(self, part: Any) -> FeatureSet:
        return extract_features(self.network, part, progress=False)


def accuracy(bank: FeatureSet, queries: FeatureSet) -> float:
    """Return the accuracy of weighted kNN."""
    return knn(bank, queries, K, TEMPERATURE)[K]


def judge(arguments: argparse.Namespace) -> None:
    """Find in every run the first copy that reaches the target, and its accuracy on the test images."""
    out, referee = Path(arguments.out), Judge(arguments.settings)
    baselines = out / "baselines.json"
    if not baselines.exists():
        values = {"raw pixels": accuracy(raw_pixels(referee.bank), raw_pixels(referee.queries))}
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
                judge_run(path, referee, arguments.target)


def judge_run(path: Path, referee: Judge, target: float) -> None:
    """Add to a run's JSON what is not known yet: held-out accuracies up to the target, then the one on test images."""
    saved, known = torch.load(path, weights_only=True), path.with_suffix(".json")
    copies = saved.pop("copies")
    curve = json.loads(known.read_text())["curve"] if known.exists() else []
    for position, copy in enumerate(copies):
        if position == len(curve):
            referee.network.load_state_dict(copy["state"])
            point = {"images": copy["images"], "seconds": copy["seconds"], "held_out": referee.held_out()}
            curve.append(point)
            known.write_text(json.dumps({**saved, "curve": curve}, indent=2) + "\n")
        if curve[position]["held_out"] >= target:
            if "test" not in curve[position]:
                referee.network.load_state_dict(copy["state"])
                curve[position]["test"] = referee.test()
            break
    known.write_text(json.dumps({**saved, "curve": curve}, indent=2) + "\n")
    print(path.stem, " ".join(f"{p['seconds']:.0f}s:{100 * p['held_out']:.1f}" for p in curve), flush=True)


def reached(run: dict[str, Any], target: float) -> dict[str, Any] | None:
    """Return the first point of a run's curve that is at the target."""
    return next((point for point in run["curve"] if point["held_out"] >= target), None)


def table(arguments: argparse.Namespace) -> None:
    """Write the JSON, the Markdown and the picture."""
    out, target = Path(arguments.out), arguments.target
    baselines = json.loads((out / "baselines.json").read_text())
    files = [run_path(arguments, n, s).with_suffix(".json") for n in arguments.contenders for s in arguments.seeds]
    runs = [json.loads(file.read_text()) for file in files if file.exists()]
    protocol = (
        f"Seconds of training until {target:.1%} of {QUERIES:,} held-out training images are right by kNN (k = {K}, "
        f"temperature {TEMPERATURE}, {BANK:,} training images as neighbours), looked at every {EVERY_IMAGES:,} images; "
        f"evaluation is not in the time. By the same measure: "
        + ", ".join(f"{name} {value:.1%}" for name, value in baselines.items())
        + ". Test: all 10,000 training images as neighbours."
    )
    picture(runs, target, baselines, out / "speedrun.png")
    print(write(out, "speedrun", [*summaries(runs, target), *(row(run, target) for run in runs)], protocol))


def row(run: dict[str, Any], target: float) -> dict[str, Any]:
    """Return the table's row of a run."""
    point, before, curve = reached(run, target), run["before_first_step"], run["curve"]
    seen = point or curve[-1]
    return {
        "contender": run["contender"],
        "seed": run["seed"],
        "seconds to the target": f"not in {seen['seconds']:.0f}" if point is None else round(seen["seconds"], 1),
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
            line["test"] = f"mean {statistics.mean(p['test'] for p in points):.1%}"
            line["everything, s"] = f"median {statistics.median(whole):.1f}"
        found.append(line)
    return found


def picture(runs: Sequence[dict[str, Any]], target: float, baselines: dict[str, float], path: Path) -> None:
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
    parser.add_argument("--target", type=float, default=0.78)
    parser.add_argument("--seconds", type=float, default=240.0, help="of training, when a schedule does not end before")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--settings", nargs="*", default=[], help="what to change in the preset: key=value")
    parser.add_argument("--out", default="runs/speedrun")
    parser.add_argument("--launched", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "work":
        work(arguments.contenders[0], arguments.seeds[0], arguments)
        return
    for name, part in (("train", train), ("judge", judge), ("table", table)):
        if arguments.what in ("all", name):
            part(arguments)


if __name__ == "__main__":
    main()
