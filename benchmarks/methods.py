"""Every method with the same network, images and number of passes: one table.

    python benchmarks/methods.py table [--data shapes fashion_mnist] [--methods simclr moco …]
    python benchmarks/methods.py tune  [--methods …]        three learning rates each, judged on held-out images
    python benchmarks/methods.py time  [--methods …]        milliseconds a step and memory, one method after the other

``table`` trains each method's small preset (``experiment=small/NAME``), evaluates the checkpoint on the test images
and prints a Markdown table, which is also saved as ``OUT/DATA.md``. ``tune`` never touches a test image: it prints, and
saves as ``OUT/tune.csv``, the kNN accuracy on the held-out images at the end of shorter runs.

``time`` needs a quiet machine: every method has it alone, in a process of its own, with all cores. The table shows its
figures, saved as ``OUT/time.json``.

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
from tqdm import tqdm

import selfsup
from selfsup.config import load_config
from selfsup.data import TrainLoader, load_splits
from selfsup.registry import methods
from selfsup.training import build_method, load_resumed_config

#: The network and the strength of the views are the same for all methods: the presets have those for drawn scenes.
#: Two crops or many, blur and solarisation are the method's own.
DATA = {
    "shapes": ["data=shapes"],
    "fashion_mnist": [
        "data=fashion_mnist",
        "data.limit=10000",
        "augment.override={scale: [0.4, 1.0], brightness: 0.4, contrast: 0.4}",
        "augment.local_override={scale: [0.15, 0.4]}",
    ],
}
BASELINES = ("raw_pixels", "untrained")
QUICK = ["eval.figures=false", "eval.probe_epochs=30", "eval.segmentation_epochs=5"]
PROTOCOLS = ("diagnostics", "knn", "linear_probe")
LEARNING_RATES = (1 / 3, 1.0, 3.0)  # times the preset's, for tune
QUIET = ["trainer.progress=false", "trainer.accelerator=cpu", "trainer.devices=1", "online.every_epochs=100000"]
COLUMNS = ("method", "kNN", "linear probe", "mIoU", "RankMe", "alignment", "uniformity", "batch", "ms a step", "MB")


@dataclass(frozen=True)
class Job:
    """A run folder to fill: by training, where there are settings for it, and by evaluation, where there are any."""

    folder: Path
    train: list[str]
    evaluate: list[str]


def train_job(folder: Path, name: str, data: str, settings: Sequence[str], evaluate: bool) -> Job:
    """Return the job that trains a preset and, for the table, evaluates it."""
    train = [f"experiment=small/{name}", *DATA[data], *QUIET, *settings, f"run_dir={folder}"]
    return Job(folder, train, [f"checkpoint={folder}"] if evaluate else [])


def baseline_job(folder: Path, name: str, data: str) -> Job:
    """Return the job that evaluates pixels or random weights."""
    settings = [setting for setting in DATA[data] if setting.startswith("data")]
    return Job(folder, [], [f"checkpoint={name}", *settings, "backbone=convnet", f"run_dir={folder}"])


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
    done.touch()


def run_all(jobs: Sequence[Job], side_by_side: int) -> None:
    """Run jobs, some at a time, each in a process with one thread; the first that fails ends the benchmark."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(side_by_side, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run, job): job for job in jobs}
        for future in tqdm(as_completed(futures), total=len(jobs), desc="runs", unit="run"):
            try:
                future.result()
            except BaseException:
                print(f"failed: {futures[future].folder}", file=sys.stderr)
                pool.shutdown(cancel_futures=True)
                raise


def row(folder: Path, name: str, times: dict[str, tuple[float, float]]) -> list[str]:
    """Return the table's row of a run."""
    records = json.loads((folder / "results.json").read_text())["results"]

    def value(protocol: str, metric: str) -> float | None:
        found = [r for r in records if (r["protocol"], r["metric"]) == (protocol, metric) and r.get("primary", True)]
        return found[-1]["value"] if found else None

    def show(number: float | None, form: str, factor: float = 1.0) -> str:
        return "–" if number is None else format(factor * number, form)

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
        "–" if name in BASELINES else str(load_config([f"experiment=small/{name}"]).batch_size),
        show(milliseconds, ".0f"),
        show(memory, ".0f"),
    ]


def last_metric(path: Path, name: str) -> float | None:
    """Return the last value of a column of a run's ``metrics.csv``."""
    with path.open(newline="") as file:
        values = [r[name] for r in csv.DictReader(file) if r.get(name)]
    return float(values[-1]) if values else None


def table(names: Sequence[str], arguments: argparse.Namespace) -> None:
    """Train, evaluate and print, one table a data source."""
    measured = Path(arguments.out) / "time.json"
    times = json.loads(measured.read_text()) if measured.exists() else {}
    for data in arguments.data:
        folder = Path(arguments.out) / data
        settings = [f"seed={arguments.seed}", f"trainer.max_epochs={arguments.epochs}"]
        jobs = [baseline_job(folder / name, name, data) for name in BASELINES]
        jobs += [train_job(folder / name, name, data, settings, evaluate=True) for name in names]
        run_all(jobs, arguments.jobs)
        rows = [list(COLUMNS), ["---"] * len(COLUMNS)]
        rows += [row(folder / name, name, times) for name in (*BASELINES, *names)]
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"
        folder.with_suffix(".md").write_text(text)
        print(f"\n{data}, {arguments.epochs} epochs, seed {arguments.seed}\n\n{text}")


def tune(names: Sequence[str], arguments: argparse.Namespace) -> None:
    """Train every method with each learning rate and print the held-out accuracies."""
    data, rows = arguments.data[0], []
    trials = []
    for name in names:
        rate = load_config([f"experiment=small/{name}"]).optimizer.lr
        for factor in arguments.factors:
            chosen = float(f"{rate * factor:.2g}")
            settings = [f"optimizer.lr={chosen}", f"trainer.max_epochs={arguments.epochs}", *arguments.set]
            settings += [f"seed={arguments.seed}", "online.bank=9000"]
            label = "-".join([name, f"{chosen:g}", *(re.sub(r"[^\w.]", "_", s) for s in arguments.set)])
            job = train_job(Path(arguments.out) / "tune" / data / label, name, data, settings, evaluate=False)
            trials.append((name, chosen, job))
    run_all([job for _, _, job in trials], arguments.jobs)
    for name, chosen, job in trials:
        found = last_metric(job.folder / "metrics.csv", "online/knn")
        rows.append([name, f"{chosen:g}", " ".join(arguments.set), "" if found is None else f"{100 * found:.1f}"])
    with (Path(arguments.out) / "tune.csv").open("a", newline="") as file:
        csv.writer(file).writerows(rows)
    print("| method | learning rate | other settings | held-out kNN |\n|---|---|---|---|")
    print("\n".join(f"| {' | '.join(cells)} |" for cells in rows))


class StepTimes(pl.Callback):
    """Notes how long each step takes, views included, loader and logging too."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.marks.append(time.perf_counter())


def measure(name: str, steps: int) -> tuple[float, float]:
    """Return the median milliseconds of a step and the peak memory in MB that training adds to the process."""
    config = load_config([f"experiment=small/{name}", *DATA["shapes"], f"data.train_size={128 * steps * 2}"])
    splits = load_splits(config.data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    method, times = build_method(config, splits), StepTimes()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, callbacks=[times], enable_model_summary=False, **quiet
    )
    trainer.fit(method, TrainLoader(splits.pretrain, config.batch_size, config.seed))
    seconds = [b - a for a, b in itertools.pairwise(times.marks)][5:]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return 1000 * statistics.median(seconds), memory / 1024


def time_steps(names: Sequence[str], arguments: argparse.Namespace) -> None:
    """Measure every method in a process of its own and print."""
    path = Path(arguments.out) / "time.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    times = json.loads(path.read_text()) if path.exists() else {}
    for name in tqdm(names, desc="methods"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            times[name] = process.submit(measure, name, 30).result()
        path.write_text(json.dumps(times, indent=2) + "\n")
    print("| method | ms a step | MB |\n|---|---|---|")
    print("\n".join(f"| {name} | {times[name][0]:.0f} | {times[name][1]:.0f} |" for name in names))


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["table", "tune", "time"])
    parser.add_argument("--methods", nargs="+", default=list(methods))
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--epochs", type=int, default=None, help="8 for the table, 4 for tuning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", default="runs/methods")
    parser.add_argument("--set", nargs="*", default=[], help="further settings for tune: key=value")
    parser.add_argument("--factors", nargs="+", type=float, default=list(LEARNING_RATES), help="for tune")
    arguments = parser.parse_args()
    arguments.epochs = arguments.epochs or (8 if arguments.what == "table" else 4)
    {"table": table, "tune": tune, "time": time_steps}[arguments.what](arguments.methods, arguments)


if __name__ == "__main__":
    main()
