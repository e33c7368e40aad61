"""Train at a high step rate for long, and watch what must stay flat: memory, file handles, threads, time of a step.

    python benchmarks/trust/soak.py --minutes 40                          images in memory
    python benchmarks/trust/soak.py --minutes 40 --case workers           a folder of files, two loader workers
    python benchmarks/trust/soak.py --minutes 40 method=byol SETTING…     another training

The training is the smallest there is (MoCo v2 with its queue and its momentum encoder), so that what happens once a
step, once an epoch, once a checkpoint and once an online evaluation happens thousands of times. It is looked at from
outside, in ``/proc``: the resident memory, the open file handles and the threads of all its processes together, and the
CPU seconds a step, which change less than the clock on a machine that does other things too.

The first quarter of the samples does not count. Of the rest the slope is the median over all pairs of samples (Theil
and Sen), and times their span it is the growth that is held against ``BOUNDS``. In the end the training gets SIGTERM,
and must stop with its checkpoint saved. Exit code 1 when anything grew or the end was another one.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
TICKS = os.sysconf("SC_CLK_TCK")
TRAINING = [
    "method=moco",
    "method.queue_size=64",
    "method.bn_groups=2",
    "method.output_dim=8",
    "backbone=resnet_tiny",
    "backbone.width=4",
    "batch_size=4",
    "data.image_size=32",
    "trainer.max_epochs=1000000",
    "trainer.log_every_steps=10",
    "trainer.checkpoint_every_steps=100",
    "trainer.progress=false",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.compile=false",
    "augment.compile=false",
    "online.every_epochs=1",
    "online.bank=40",
    "online.queries=8",
    "online.stop_on_collapse=false",
]
CASES = ("resident", "workers")
PATIENCE = 300.0  # seconds until the first row, and until the end after SIGTERM


@dataclasses.dataclass(frozen=True)
class Sample:
    """What was seen of a training at one moment."""

    seconds: float
    step: int
    cpu_seconds: float
    memory_mb: float
    handles: int
    threads: int


@dataclasses.dataclass(frozen=True)
class Bound:
    """How much something may grow while it is watched: ``most``, and for runs of more than an hour so much an hour.

    ``share`` says that it is a part of the median instead.
    """

    most: float
    unit: str
    share: bool = False


BOUNDS = {
    "memory": Bound(8, "MB"),
    "file handles": Bound(1, ""),
    "threads": Bound(1, ""),
    "CPU time of a step": Bound(0.1, "ms", share=True),
}


def look(session: int, metrics: Path, began: float) -> Sample | None:
    """Return a sample of all processes of a session; None while there is no row of metrics, or when it has ended."""
    step = last_step(metrics)
    cpu = memory = 0.0
    handles = threads = found = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) != session or fields[0] == "Z":
                continue
            handles += len(os.listdir(entry / "fd"))
        except OSError:
            continue  # it has just ended
        found += 1
        cpu += sum(map(int, fields[11:15])) / TICKS  # its own, and of those that it has waited for
        threads += int(fields[17])
        memory += int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    if not found or step is None:
        return None
    return Sample(time.monotonic() - began, step, cpu, memory, handles, threads)


def last_step(metrics: Path) -> int | None:
    """Return the step of the last whole row of a ``metrics.csv``, of which only the ends are read."""
    try:
        with metrics.open("rb") as file:
            column = file.readline().decode().strip().split(",").index("step")
            file.seek(max(file.tell(), metrics.stat().st_size - 2000))
            rows = [line.decode().strip().split(",") for line in file.readlines() if line.endswith(b"\n")]
    except (OSError, ValueError):
        return None
    steps = [row[column] for row in rows if len(row) > column and row[column].isdigit()]
    return int(steps[-1]) if steps else None


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Return the median of the slopes between all pairs of samples."""
    pairs = itertools.combinations(range(len(times)), 2)
    return statistics.median((values[b] - values[a]) / (times[b] - times[a]) for a, b in pairs)


def verdict(samples: Sequence[Sample]) -> list[dict[str, object]]:
    """Return a row for each of ``BOUNDS``: what it was, its growth, and whether it is flat.

    Raises:
        SystemExit: There are too few samples to tell.
    """
    kept = samples[len(samples) // 4 :]
    if len(kept) < 6 or kept[-1].step <= kept[0].step:
        raise SystemExit(f"{len(samples)} samples are too few to tell; watch for longer.")
    times = [sample.seconds for sample in kept]
    # from one sample to the next one that has come further
    steps = [(a, b) for a, b in itertools.pairwise(kept) if b.step > a.step]
    series: dict[str, tuple[list[float], list[float]]] = {
        "memory": (times, [sample.memory_mb for sample in kept]),
        "file handles": (times, [float(sample.handles) for sample in kept]),
        "threads": (times, [float(sample.threads) for sample in kept]),
        "CPU time of a step": (
            [b.seconds for _, b in steps],
            [1000 * (b.cpu_seconds - a.cpu_seconds) / (b.step - a.step) for a, b in steps],
        ),
    }
    hours = (times[-1] - times[0]) / 3600
    rows: list[dict[str, object]] = []
    for name, (at, values) in series.items():
        bound, middle = BOUNDS[name], statistics.median(values)
        growth = slope(at, values) * (times[-1] - times[0])
        most = bound.most * middle if bound.share else bound.most * max(1.0, hours)
        row = {"what": f"{name}, {bound.unit}" if bound.unit else name, "median": round(middle, 2)}
        row |= {"least": round(min(values), 2), "most": round(max(values), 2)}
        rows.append(row | {"growth": round(growth, 3), "bound": round(most, 2), "flat": growth <= most})
    return rows


def settings(case: str, folder: Path) -> list[str]:
    """Return the settings of the training; its images are made in the folder."""
    if case == "resident":
        return [*TRAINING, "data=shapes", "data.train_size=450", "data.test_size=40"]
    from PIL import Image

    for number in range(450):
        path = folder / "images" / f"c{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 36), 20 + number % 60).convert("RGB").save(path)
    more = ["data=image_folder", f"data.root={folder / 'images'}", "data.resident_limit_mb=0", "data.workers=2"]
    return [*TRAINING, *more]


def watch(
    folder: Path, words: Sequence[str], seconds: float, every: float, told: Callable[[Sample], None] | None = None
) -> list[Sample]:
    """Train in a folder for some seconds after the first row of metrics, and return the samples.

    Raises:
        SystemExit: The training ended by itself, or not as it should after SIGTERM.
    """
    from selfsup.checkpoint import read_checkpoint

    run, log = folder / "run", folder / "log.txt"
    shutil.rmtree(run, ignore_errors=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "selfsup.cli", "train", *words, f"run_dir={run}"],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
    samples: list[Sample] = []
    began = time.monotonic()
    try:
        limit = began + PATIENCE
        while time.monotonic() < limit:
            if process.poll() is not None:
                raise SystemExit(f"the training ended by itself: {log.read_text()[-2000:]}")
            if (sample := look(process.pid, run / "metrics.csv", began)) is not None:
                if not samples:
                    limit = time.monotonic() + seconds
                samples.append(sample)
                if told is not None:
                    told(sample)
            time.sleep(every if samples else 0.2)
        if not samples:
            raise SystemExit(f"no row of metrics in {PATIENCE:.0f} s: {log.read_text()[-2000:]}")
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if code != 128 + signal.SIGTERM or "everything up to here is saved" not in log.read_text():
        raise SystemExit(f"SIGTERM ended the training with exit code {code}: {log.read_text()[-2000:]}")
    saved = read_checkpoint(run)["global_step"]
    if saved < samples[-1].step:
        raise SystemExit(f"the checkpoint is of step {saved}, and step {samples[-1].step} was done before SIGTERM.")
    return samples


def main() -> int:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--case", choices=CASES, default="resident")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two samples")
    parser.add_argument("--out", type=Path, default=Path("build/trust"))
    parser.add_argument("settings", nargs="*", metavar="SETTING", help="of the training, in place of its own")
    options = parser.parse_args()
    folder = (options.out / f"soak-{options.case}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "samples.csv"
    names = [field.name for field in dataclasses.fields(Sample)]
    table.write_text(",".join(names) + "\n")

    def note(sample: Sample) -> None:
        with table.open("a") as file:
            file.write(",".join(f"{value:.6g}" for value in dataclasses.astuple(sample)) + "\n")

    words = [*settings(options.case, folder), *options.settings]
    samples = watch(folder, words, 60 * options.minutes, options.every, note)
    sys.path.insert(0, str(HERE.parent))
    from measure import write

    rows = verdict(samples)
    first, last = samples[0], samples[-1]
    steps, seconds = last.step - first.step, last.seconds - first.seconds
    protocol = (
        f"{steps:,} steps in {seconds / 60:.0f} minutes ({steps / seconds:.0f} a second), {options.case}; "
        f"{len(samples)} samples, of which the first quarter does not count"
    )
    print(write(options.out, f"soak-{options.case}", rows, protocol))
    return int(not all(row["flat"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
