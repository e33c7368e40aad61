"""Every method with the same network, images and number of passes: one table.

    python benchmarks/methods.py table [--data shapes fashion_mnist] [--methods simclr moco …]
    python benchmarks/methods.py tune  [--methods …]        three learning rates each, judged on held-out images

``table`` trains each method's small preset (``experiment=small/NAME``), evaluates the checkpoint on the test images
and prints a Markdown table, which is also saved as ``OUT/DATA.md``. ``tune`` never touches a test image: it prints, and
saves as ``OUT/tune.csv``, the kNN accuracy on the held-out images at the end of shorter runs.

Runs go to ``--out`` and are not repeated when they are there: a benchmark that was stopped goes on where it was. Each
run has one thread, and ``--jobs`` runs go side by side, so a step takes longer than alone on the machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import selfsup.methods  # noqa: F401 - fills the registry
from selfsup.config import load_config
from selfsup.registry import methods

#: The network and the strength of the views, the same for all methods on one kind of image. Two crops or many, blur and
#: solarisation are the method's own.
DATA = {
    "shapes": ["data=shapes", "augment.override={scale: [0.5, 1.0], brightness: 0.8, contrast: 0.8, saturation: 0.8, "
               "hue: 0.2, gray_p: 0.4}"],
    "fashion_mnist": ["data=fashion_mnist", "data.limit=10000",
                      "augment.override={scale: [0.4, 1.0], brightness: 0.4, contrast: 0.4}"],
}  # fmt: skip
BASELINES = ("raw_pixels", "untrained")
LEARNING_RATES = (1 / 3, 1.0, 3.0)  # times the preset's
QUIET = ["trainer.progress=false", "trainer.accelerator=cpu", "trainer.devices=1", "online.every_epochs=100000"]
COLUMNS = ("method", "kNN", "linear probe", "mIoU", "RankMe", "alignment", "uniformity", "ms a step", "peak MB")


@dataclass(frozen=True)
class Job:
    """Commands that fill one run folder."""

    folder: Path
    commands: list[list[str]]

    def run(self) -> None:
        """Run the commands one after the other, unless they have all succeeded before."""
        done = self.folder / ".done"
        if done.exists():
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        log = self.folder.with_suffix(".log")
        for command in self.commands:
            if command[0] == "train" and (self.folder / "checkpoints" / "last.ckpt").exists():
                trained = (self.folder / "results.json").exists()
                if trained:
                    continue
                command = ["train", f"resume={self.folder}"]
            with log.open("a") as output:
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                full = [sys.executable, "-m", "selfsup.cli", *command]
                code = subprocess.run(full, stdout=output, stderr=output, env=environment, check=False).returncode
            if code:
                raise RuntimeError(f"selfsup {' '.join(command)} failed; see {log}")
        done.touch()


def train_job(folder: Path, name: str, data: str, settings: Sequence[str], evaluate: bool) -> Job:
    """Return the job that trains a preset and, for the table, evaluates it."""
    train = ["train", f"experiment=small/{name}", *DATA[data], *QUIET, *settings, f"run_dir={folder}"]
    return Job(folder, [train, ["evaluate", f"checkpoint={folder}"]] if evaluate else [train])


def baseline_job(folder: Path, name: str, data: str) -> Job:
    """Return the job that evaluates pixels or random weights."""
    settings = [setting for setting in DATA[data] if setting.startswith("data")]
    return Job(folder, [["evaluate", f"checkpoint={name}", *settings, "backbone=convnet", f"run_dir={folder}"]])


def run_all(jobs: Sequence[Job], side_by_side: int) -> None:
    """Run jobs, some at a time; the first that fails ends the benchmark."""
    with ThreadPoolExecutor(side_by_side) as pool:
        futures = [pool.submit(job.run) for job in jobs]
        for job, future in zip(tqdm(jobs, desc="runs", unit="run"), futures, strict=True):
            try:
                future.result()
            except RuntimeError:
                print(f"failed: {job.folder}", file=sys.stderr)
                pool.shutdown(cancel_futures=True)
                raise


def row(folder: Path, name: str) -> list[str]:
    """Return the table's row of a run."""
    records = json.loads((folder / "results.json").read_text())["results"]

    def value(protocol: str, metric: str) -> float | None:
        found = [r for r in records if (r["protocol"], r["metric"]) == (protocol, metric) and r.get("primary", True)]
        return found[-1]["value"] if found else None

    def show(number: float | None, form: str, factor: float = 1.0) -> str:
        return "–" if number is None else format(factor * number, form)

    training = next((r for r in records if r["protocol"] == "training"), None)
    milliseconds = memory = alignment = None
    if training is not None:
        steps = training["images"] // training["batch_size"] * training["epochs"]
        milliseconds, memory = 1000 * training["value"] / steps, training["peak_memory_mb"]
        alignment = last_metric(folder / "metrics.csv", "health/alignment")
    return [
        name,
        show(value("knn", "top1"), ".1f", 100),
        show(value("linear_probe", "top1"), ".1f", 100),
        show(value("segmentation", "miou"), ".1f", 100),
        show(value("diagnostics", "rank_me"), ".1f"),
        show(alignment, ".2f"),
        show(value("diagnostics", "uniformity"), ".2f"),
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
    for data in arguments.data:
        folder = Path(arguments.out) / data
        settings = [f"seed={arguments.seed}", f"trainer.max_epochs={arguments.epochs}"]
        jobs = [baseline_job(folder / name, name, data) for name in BASELINES]
        jobs += [train_job(folder / name, name, data, settings, evaluate=True) for name in names]
        run_all(jobs, arguments.jobs)
        rows = [list(COLUMNS), ["---"] * len(COLUMNS)]
        rows += [row(folder / name, name) for name in (*BASELINES, *names)]
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"
        (folder.with_suffix(".md")).write_text(text)
        print(f"\n{data}, {arguments.epochs} epochs, seed {arguments.seed}\n\n{text}")


def tune(names: Sequence[str], arguments: argparse.Namespace) -> None:
    """Train every method with each learning rate and print the held-out accuracies."""
    data, rows = arguments.data[0], []
    trials = []
    for name in names:
        rate = load_config([f"experiment=small/{name}"]).optimizer.lr
        for factor in LEARNING_RATES:
            chosen = float(f"{rate * factor:.2g}")
            settings = [f"optimizer.lr={chosen}", f"trainer.max_epochs={arguments.epochs}", *arguments.set]
            settings += [f"seed={arguments.seed}", "online.bank=9000"]
            label = "-".join([name, f"{chosen:g}", *(s.replace("/", "_") for s in arguments.set)])
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


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["table", "tune"])
    parser.add_argument("--methods", nargs="+", default=list(methods))
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--epochs", type=int, default=None, help="10 for the table, 4 for tuning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", default="runs/methods")
    parser.add_argument("--set", nargs="*", default=[], help="further settings for tune: key=value")
    arguments = parser.parse_args()
    arguments.epochs = arguments.epochs or (10 if arguments.what == "table" else 4)
    (table if arguments.what == "table" else tune)(arguments.methods, arguments)


if __name__ == "__main__":
    main()
