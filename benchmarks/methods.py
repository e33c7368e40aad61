"""Every method with the same network, images and number of passes: one table for each kind of data.

    python benchmarks/methods.py table [--data shapes fashion_mnist …] [--methods simclr moco …]
    python benchmarks/methods.py tune  --data fashion_mnist [--methods …]   learning rates, judged on held-out images
    python benchmarks/methods.py time  [--methods …]        milliseconds a step and memory, one method after the other

``table`` trains each method's small preset (``experiment=small/NAME``) with the settings of ``DATA`` and ``OWN`` below,
evaluates the checkpoint on the test images and prints a Markdown table, which is also saved as ``OUT/DATA.md``.
``tune`` never touches a test image: it prints, and saves as ``OUT/tune.csv``, the kNN accuracy on the held-out images
at the end of shorter runs, or their mIoU for ``shapes_dense``.

``time`` needs a quiet machine: every method has it alone, in a process of its own, with all cores. The table of the
same data shows its figures, saved as ``OUT/time.json``.

Runs go to ``--out`` and are not repeated when they are there: a benchmark that was stopped goes on where it was. Each
run of ``table`` and ``tune`` has one thread, and ``--jobs`` of them go side by side.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import multiprocessing
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from tqdm import tqdm

import selfsup
from selfsup.config import load_config
from selfsup.data import TrainLoader, load_splits
from selfsup.engine.environment import keep_memory
from selfsup.engine.training import build_method, load_resumed_config
from selfsup.eval import Encoder, SegmentationSettings, segmentation_probe
from selfsup.registry import methods
from selfsup.tables import markdown_table

#: Settings of all methods, over the presets, which are those for drawn scenes. Two crops or many, blur and solarisation
#: are the method's own.
DATA = {
    "shapes": ["data=shapes"],
    # Crops are smaller than the image: objects are magnified less by them, and a step takes half the time.
    "fashion_mnist": [
        "data=fashion_mnist",
        "data.limit=10000",
        "backbone.blocks=[1, 1, 1, 1]",
        "augment.sizes=[20]",
        "augment.override={scale: [0.4, 1.0], brightness: 0.4, contrast: 0.4}",
    ],
    # The drawn scenes' network, under which several methods lose what tells clothes apart: see docs/methods.md.
    "fashion_mnist_seven": [
        "data=fashion_mnist",
        "data.limit=10000",
        "augment.override={scale: [0.4, 1.0], brightness: 0.4, contrast: 0.4}",
        "augment.local_override={scale: [0.15, 0.4]}",
    ],
    # For methods that learn from places: two objects a scene, crops that show a part of it, and cells of 4 pixels, of
    # which a crop has 6 × 6 and a scene 12 × 12.
    "shapes_dense": [
        "data=shapes",
        "data.image_size=48",
        "data.objects=2",
        "data.train_size=8000",
        "data.test_size=1000",
        "backbone.blocks=[1, 2, 2]",
        "augment.sizes=[24]",
        "augment.override={scale: [0.2, 0.6]}",
    ],
    # Few photographs and the presets as they are: for short trials. --set data.root=DIR/cifar10 says where they are.
    "cifar10_few": ["data=image_folder", "data.image_size=32", "data.source_size=32", "data.limit=4000"],
}
LOCAL_CROPS = {
    "fashion_mnist": ["augment.sizes=[20, 12]", "augment.local_override={scale: [0.15, 0.4]}"],
    "shapes_dense": ["augment.sizes=[24, 12]", "augment.local_override={scale: [0.05, 0.2]}"],
}
MULTI_CROP = ("dino", "swav")
#: Settings of single methods, by kind of data. A head over every cell costs more than the network where it is as wide
#: as in the presets; BYOL's is as wide as those it is compared with. Learning rates were chosen on held-out masks.
OWN: dict[str, dict[str, list[str]]] = {
    "shapes_dense": {
        "vicreg": ["optimizer.lr=0.009"],
        "moco": ["optimizer.lr=0.036"],
        "byol": ["method.hidden_dim=128", "optimizer.lr=0.009"],
        "pixpro": ["method.hidden_dim=128", "optimizer.lr=0.003"],
        "pixcontrast": ["method.hidden_dim=128", "optimizer.lr=0.009"],
    }
}
#: ``shapes_dense`` is for the dense methods and what they are compared with; the others compare all.
COMPARED = {"shapes_dense": ("simclr", "vicreg", "moco", "densecl", "byol", "pixpro", "pixcontrast")}
EPOCHS = {"shapes": 8, "fashion_mnist": 3, "fashion_mnist_seven": 5, "shapes_dense": 10, "cifar10_few": 15}
BASELINES = ("raw_pixels", "untrained")
QUICK = ["eval.figures=false", "eval.linear_probe.epochs=30", "eval.segmentation.epochs=5"]
PROTOCOLS = ("diagnostics", "knn", "linear_probe")
HELDOUT = "heldout.json"
LEARNING_RATES = (1 / 3, 1.0, 3.0)  # times the preset's, for tune
WARM_UP = 5  # steps that are not timed
QUIET = ["trainer.progress=false", "trainer.accelerator=cpu", "trainer.devices=1", "online.every_epochs=100000"]
MISSING = "–"
COLUMNS = ("method", "kNN", "linear probe", "mIoU", "RankMe", "alignment", "uniformity", "batch", "ms a step", "MB")


@dataclass(frozen=True)
class Job:
    """A run folder to fill: by training and by evaluation, where there are settings for them.

    With ``heldout_masks`` the masks of the held-out images are segmented too, and no test image is read.
    """

    folder: Path
    train: list[str]
    evaluate: list[str]
    heldout_masks: bool = False


def train_job(folder: Path, name: str, data: str, settings: Sequence[str], evaluate: bool) -> Job:
    """Return the job that trains a preset and, for the table, evaluates it."""
    train = [*preset(name, data), *QUIET, *settings, f"run_dir={folder}"]
    if evaluate:
        return Job(folder, train, [f"checkpoint={folder}"])
    return Job(folder, train, [], heldout_masks=data == "shapes_dense")


def preset(name: str, data: str) -> list[str]:
    """Return the settings of a method for a kind of data."""
    crops = LOCAL_CROPS.get(data, []) if name in MULTI_CROP else []
    return [f"experiment=small/{name}", *DATA[data], *crops, *OWN.get(data, {}).get(name, [])]


def baseline_job(folder: Path, name: str, data: str, settings: Sequence[str] = ()) -> Job:
    """Return the job that evaluates pixels or random weights; of the further settings it takes those of the images."""
    network = ["backbone=convnet", *(s for s in DATA[data] if s.startswith("backbone."))]
    images = [s for s in (*DATA[data], *settings) if s.startswith("data")]
    return Job(folder, [], [f"checkpoint={name}", *images, *network, f"run_dir={folder}"])


def run(job: Job) -> None:
    """Do what a job asks for, unless it was done before."""
    done, last = job.folder / ".done", job.folder / "checkpoints" / "last.ckpt"
    if done.exists():
        return
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    log = job.folder.with_name(f"{job.folder.name}.log")  # a learning rate has a point of its own
    with log.open("a") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        if job.train and not (job.folder / "results.json").exists():
            resumed = [f"resume={job.folder}"]
            selfsup.train(load_resumed_config(resumed) if last.exists() else load_config(job.train))
        if job.evaluate:
            config = selfsup.load_evaluate_config([*job.evaluate, *QUICK])
            masks = ["segmentation"] if config.data.name == "shapes" else []
            selfsup.evaluate(config, [*PROTOCOLS, *masks], progress=False)
        if job.heldout_masks:
            splits, network = load_splits(load_config(job.train).data), selfsup.load_backbone(job.folder)
            encoder, settings = Encoder(network, progress=False), SegmentationSettings(epochs=5)
            found = segmentation_probe(encoder, splits.train, splits.holdout, settings)
            (job.folder / HELDOUT).write_text(json.dumps({"miou": found.miou}) + "\n")
    done.touch()


def run_all(jobs: Sequence[Job], side_by_side: int) -> None:
    """Run jobs, some at a time, each with one thread; the first that fails ends the benchmark."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if side_by_side == 1:  # here, as every process would load all libraries once more
        torch.set_num_threads(1)
        for job in tqdm(jobs, desc="runs", unit="run"):
            run(job)
        return
    with ProcessPoolExecutor(side_by_side, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run, job): job for job in jobs}
        for future in tqdm(as_completed(futures), total=len(jobs), desc="runs", unit="run"):
            try:
                future.result()
            except BaseException:
                print(f"failed: {futures[future].folder}", file=sys.stderr)
                pool.shutdown(cancel_futures=True)
                raise


def row(folder: Path, name: str, data: str, times: dict[str, tuple[float, float]]) -> list[str]:
    """Return the table's row of a run."""
    records = json.loads((folder / "results.json").read_text())["results"]

    def value(protocol: str, metric: str) -> float | None:
        found = [r for r in records if (r["protocol"], r["metric"]) == (protocol, metric) and r.get("primary", True)]
        return found[-1]["value"] if found else None

    def show(number: float | None, form: str, factor: float = 1.0) -> str:
        return MISSING if number is None else format(factor * number, form)

    metrics = folder / "metrics.csv"
    alignment = last_metric(metrics, "health/alignment") if metrics.exists() else None
    milliseconds, memory = times.get(name, (None, None))
    return [
        name,
        show(value("knn", "top1"), ".1f", 100),
        show(value("linear_probe", "top1"), ".1f", 100),
        show(value("segmentation", "miou"), ".1f", 100),
        show(value("diagnostics", "rank_me"), ".1f"),
        show(alignment, ".2f"),
        show(value("diagnostics", "uniformity"), ".2f"),
        MISSING if name in BASELINES else str(load_config(preset(name, data)).batch_size),
        show(milliseconds, ".0f"),
        show(memory, ".0f"),
    ]


def last_metric(path: Path, name: str) -> float | None:
    """Return the last value of a column of a run's ``metrics.csv``."""
    with path.open(newline="") as file:
        values = [r[name] for r in csv.DictReader(file) if r.get(name)]
    return float(values[-1]) if values else None


def table(names: Sequence[str] | None, arguments: argparse.Namespace) -> None:
    """Train, evaluate and print, one table a data source."""
    measured = Path(arguments.out) / "time.json"
    times = json.loads(measured.read_text()) if measured.exists() else {}
    for data in arguments.data:
        folder = Path(arguments.out) / data
        chosen, epochs = names or compared(data), arguments.epochs or EPOCHS[data]
        settings = [f"seed={arguments.seed}", f"trainer.max_epochs={epochs}", *arguments.set]
        jobs = [baseline_job(folder / name, name, data, arguments.set) for name in BASELINES]
        jobs += [train_job(folder / name, name, data, settings, evaluate=True) for name in chosen]
        run_all(jobs, arguments.jobs)
        rows = [row(folder / name, name, data, times.get(data, {})) for name in (*BASELINES, *chosen)]
        shown = [i for i, column in enumerate(zip(*rows, strict=True)) if set(column) != {MISSING}]
        heads, *rows = ([cells[i] for i in shown] for cells in (COLUMNS, *rows))
        text = markdown_table(heads, rows)
        folder.with_suffix(".md").write_text(text)
        print(f"\n{data}, {epochs} epochs, seed {arguments.seed}\n\n{text}")


def compared(data: str) -> Sequence[str]:
    """Return the methods that a kind of data compares; but none that brings a network or needs a teacher."""
    apart = {
        name for name in methods if "backbone" in methods[name].choices or hasattr(methods[name].config, "teacher")
    }
    return COMPARED.get(data, tuple(name for name in methods if name not in apart))


def tune(names: Sequence[str] | None, arguments: argparse.Namespace) -> None:
    """Train every method with each learning rate and print how it does on the held-out images."""
    data = arguments.data[0]
    epochs = arguments.epochs or EPOCHS[data] // 2
    trials, rows = [], []
    for name in names or compared(data):
        rate = load_config(preset(name, data)).optimizer.lr
        for factor in arguments.factors:
            chosen = float(f"{rate * factor:.2g}")
            settings = [f"optimizer.lr={chosen}", f"trainer.max_epochs={epochs}", *arguments.set]
            settings += [f"seed={arguments.seed}", "online.bank=9000"]
            label = "-".join([name, f"{epochs}", f"{chosen:g}", *(re.sub(r"[^\w.]", "_", s) for s in arguments.set)])
            job = train_job(Path(arguments.out) / "tune" / data / label, name, data, settings, evaluate=False)
            trials.append((name, chosen, job))
    run_all([job for _, _, job in trials], arguments.jobs)
    for name, chosen, job in trials:
        if job.heldout_masks:
            found = json.loads((job.folder / HELDOUT).read_text())["miou"]
        else:
            found = last_metric(job.folder / "metrics.csv", "online/knn")
        rows.append([data, name, epochs, f"{chosen:g}", " ".join(arguments.set), f"{100 * (found or 0):.1f}"])
    with (Path(arguments.out) / "tune.csv").open("a", newline="") as file:
        csv.writer(file).writerows(rows)
    measure = "mIoU" if data == "shapes_dense" else "kNN"
    heads = ["data", "method", "epochs", "learning rate", "other settings", f"held-out {measure}"]
    print(markdown_table(heads, [[str(cell) for cell in cells] for cells in rows]))


class StepTimes(pl.Callback):
    """Notes how long each step takes, views included, loader and logging too."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.marks.append(time.perf_counter())


def measure(name: str, data: str, steps: int) -> tuple[float, float]:
    """Return the median milliseconds of a step and the peak memory in MB that training adds to the process."""
    config = load_config([*preset(name, data), *(["data.train_size=1500"] if data.startswith("shapes") else [])])
    splits = load_splits(config.data)
    keep_memory()  # as a training does
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    method, times = build_method(config, splits), StepTimes()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, callbacks=[times], enable_model_summary=False, **quiet
    )
    trainer.fit(method, TrainLoader(splits.pretrain, config.batch_size, config.seed))
    seconds = [b - a for a, b in itertools.pairwise(times.marks)][WARM_UP:]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return 1000 * statistics.median(seconds), memory / 1024


def time_steps(names: Sequence[str] | None, arguments: argparse.Namespace) -> None:
    """Measure every method in a process of its own and print."""
    path = Path(arguments.out) / "time.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    times = json.loads(path.read_text()) if path.exists() else {}
    data = arguments.data[0]
    own, chosen = times.setdefault(data, {}), names or compared(data)
    for name in tqdm(chosen, desc="methods"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            own[name] = process.submit(measure, name, data, 20 + WARM_UP).result()
        path.write_text(json.dumps(times, indent=2) + "\n")
    rows = [[name, f"{own[name][0]:.0f}", f"{own[name][1]:.0f}"] for name in chosen]
    print(markdown_table(["method", "ms a step", "MB"], rows))


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["table", "tune", "time"])
    parser.add_argument("--methods", nargs="+", help="all by default; of shapes_dense those of COMPARED")
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA), help="all; tune and time: one")
    parser.add_argument("--epochs", type=int, default=None, help="EPOCHS for the table, half of it for tuning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", default="runs/methods")
    parser.add_argument("--set", nargs="*", default=[], help="further settings, for table and tune: key=value")
    parser.add_argument("--factors", nargs="+", type=float, default=list(LEARNING_RATES), help="for tune")
    arguments = parser.parse_args()
    {"table": table, "tune": tune, "time": time_steps}[arguments.what](arguments.methods, arguments)


if __name__ == "__main__":
    main()
