"""Everything that needs a GPU, in parts of at most nine minutes: make gpu.

    python benchmarks/gpu.py                        every part that has no result yet, then the page
    python benchmarks/gpu.py views steps            these parts, whether they have a result or not
    python benchmarks/gpu.py --list
    python benchmarks/gpu.py --rehearse --out DIR   the same programs on the CPU with tiny settings, in a minute or two

It needs the checkout, the declared packages, for the speedrun Fashion-MNIST, and below ``--root`` the folders
``cifar10/`` and ``imagenette/`` of ``standard.py``; no network. Each part is a command of its own with the tables it
leaves in ``--out``. One that fails, takes longer than nine minutes or leaves no table is told with the end of its
output, the others go on, and the next call takes it up again, rows of the standard table from their last epoch. Then
``--page`` is written anew: the tables between its marks, "not measured yet" for a part without one. lightly, solo-learn
and stable-pretraining are measured where they are installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import fill, summary, write
from tiny_images import write_images

HERE = Path(__file__).parent
SECONDS = 540.0
NOT_YET = "Not measured yet."
SHAPES = ("method=simclr", "data=shapes", "trainer.progress=false", "trainer.devices=1", "online.every_epochs=0")
#: Ways to train on one device: what messages, shared statistics, sharding, CUDA graphs and determinism cost.
WAYS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "compiled, with CUDA graphs": ("trainer.compile=true",),
    "deterministic operations": ("trainer.deterministic=error",),
    "DistributedDataParallel (NCCL)": ("trainer.strategy=ddp",),
    "the same, SyncBatchNorm": ("trainer.strategy=ddp", "trainer.sync_batchnorm=true"),
    "fully sharded": ("trainer.strategy=fsdp",),
}


@dataclass(frozen=True)
class Part:
    """A command of at most nine minutes.

    Attributes:
        title: Of its section.
        program: In this folder, with the arguments of every run.
        real, tiny: Further arguments on a GPU, and in a rehearsal.
        tables: Names of the tables that it leaves, as ``measure.write`` takes them; the first is always there.
        photographs: Whether it reads the images below ``--root``.
    """

    title: str
    program: tuple[str, ...]
    real: tuple[str, ...]
    tiny: tuple[str, ...]
    tables: tuple[str, ...]
    photographs: bool = False


def row(data: str, method: str, title: str) -> Part:
    """Return the part that makes a row of the table of ``standard.py``, our side of it."""
    words = ("--budget", "gpu", "--data", data, "--methods", method, "--by", "selfsup", "--seeds", "0")
    table = f"gpu/{data}/standard"
    return Part(title, ("standard.py", *words), (), ("--rehearse",), (table,), photographs=True)


PARTS = {
    "tests": Part("Tests marked gpu", ("gpu.py", "--work", "tests"), (), ("--rehearse",), ("tests",)),
    "views": Part(
        "Views, beside others and beside a step of a ResNet-50",
        ("views.py", "--step", "--threads", "2"),
        ("--device", "cuda", "--without", "Kornia, compiled"),
        (
            *("--device", "cpu", "--sizes", "32", "--repeats", "1", "--step-images", "2", "--step-side", "64"),
            *("--without", "ours, c", "Kornia", "stable", "torchv"),
        ),
        ("views-2-threads", "views-step"),
    ),
    "steps": Part(
        "A training step, beside its limit and lightly: ResNet-18, CIFAR size",
        ("steps.py", "--batch", "256"),
        (
            *("--width", "64", "--precision", "bf16-mixed", "--device", "gpu", "--rounds", "16", "--steps", "10"),
            *("--contenders", "ours", "compiled", "limit", "lightly", "kornia"),
        ),
        (
            *("--width", "4", "--precision", "bf16-mixed", "--device", "cpu", "--rounds", "1", "--steps", "1"),
            *("--warm", "1", "--batch", "8", "--images", "32", "--contenders", "ours", "limit"),
        ),
        ("steps-{device}-width{width}-bf16-mixed",),
    ),
    "ways": Part(
        "One device: CUDA graphs, NCCL, SyncBatchNorm, sharding",
        ("gpu.py", "--work", "ways"),
        (),
        ("--rehearse",),
        ("ways",),
    ),
    "memory": Part(
        "Memory of a step",
        ("memory.py",),
        ("--backbone", "resnet50", "--size", "224", "--batches", "64", "256", "--chunk", "64"),
        ("--batches", "8", "--chunk", "4", "--backbone", "resnet_tiny", "--size", "16", "--repeats", "1"),
        ("memory",),
    ),
    "neighbours": Part(
        "Exact nearest neighbours, by faiss on the GPU",
        ("neighbours.py",),
        (),
        ("--bank", "2000", "--queries", "100", "--repeats", "1"),
        ("neighbours",),
    ),
    "speedrun": Part(
        "Seconds to an accuracy",
        ("speedrun.py", "--contenders", "selfsup"),
        ("--seconds", "120"),
        (
            *("--seconds", "1", "--seeds", "0", "--settings", "data=shapes", "data.train_size=400"),
            *("data.test_size=40", "data.image_size=32", "data.limit=null", "trainer.max_epochs=1"),
        ),
        ("speedrun",),
    ),
    "race": Part(
        "CIFAR-10 to 80 and 90 % kNN",
        ("speedrun.py", "--data", "cifar10_gpu", "--contenders", "selfsup", "--seeds", "0"),
        (),
        ("--rehearse", "--threads", "1"),
        ("speedrun",),
        photographs=True,
    ),
    "row-simclr": row("cifar10", "simclr", "CIFAR-10, 200 epochs: SimCLR"),
    "row-moco": row("cifar10", "moco", "CIFAR-10, 200 epochs: MoCo v2"),
    "row-byol": row("cifar10", "byol", "CIFAR-10, 200 epochs: BYOL"),
    "row-barlow": row("cifar10", "barlow_twins", "CIFAR-10, 200 epochs: Barlow Twins"),
    "row-imagenette": row("imagenette", "simclr", "Imagenette, 200 epochs: SimCLR"),
    "row-dino": row("imagenette", "dino", "Imagenette, 200 epochs: DINO"),
}


def tables(part: Part, rehearse: bool) -> list[str]:
    """Return the names of the tables of a part."""
    device, width = ("cpu", 4) if rehearse else ("cuda", 64)
    return [name.format(device=device, width=width) for name in part.tables]


def command(name: str, out: Path, rehearse: bool, root: Path = Path("data")) -> list[str]:
    """Return what a part runs."""
    part = PARTS[name]
    program, *more = part.program
    return [
        *(sys.executable, str(HERE / program), *more),
        *(part.tiny if rehearse else part.real),
        *(("--root", str(out / "images" if rehearse else root)) if part.photographs else ()),
        *("--out", str(out / name)),
    ]


def is_there(name: str, out: Path, rehearse: bool) -> bool:
    """Return whether the part has left its tables: all that a run to the end leaves."""
    return all((out / name / f"{table}.json").exists() for table in tables(PARTS[name], rehearse))


def forget(name: str, out: Path, rehearse: bool) -> None:
    """Remove the tables of a part; what its program goes on from stays."""
    for table in tables(PARTS[name], rehearse):
        (out / name / f"{table}.json").unlink(missing_ok=True)


def run(name: str, out: Path, rehearse: bool, seconds: float = SECONDS, root: Path = Path("data")) -> str | None:
    """Run a part; return None, or in a sentence why it has no result."""
    forget(name, out, rehearse)
    (out / name).mkdir(parents=True, exist_ok=True)
    if rehearse and PARTS[name].photographs and not (out / "images").exists():
        write_images(out / "images", "cifar10")
        write_images(out / "images", "imagenette", size=(40, 52))
    log, start = out / name / "log.txt", time.perf_counter()
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""} if rehearse else dict(os.environ)
    with log.open("w") as file:
        # a session of its own, so that its workers end with it
        process = subprocess.Popen(
            command(name, out, rehearse, root),
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None or code is None:
                os.killpg(process.pid, 9)
                process.wait()
    print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    if code == 0 and is_there(name, out, rehearse):
        return None
    forget(name, out, rehearse)  # a program that failed may have left some
    how = f"took longer than {seconds:.0f} s" if code is None else f"ended with code {code}"
    if code == 0:
        how = "left no table"
    return f"{name} {how}; the end of {log}:\n{log.read_text()[-1500:]}"


def page(path: Path, out: Path, rehearse: bool) -> None:
    """Put the tables between the marks of the page."""
    contents = {}
    for name, part in PARTS.items():
        found = (
            [out / name / f"{table}.md" for table in tables(part, rehearse)] if is_there(name, out, rehearse) else []
        )
        contents[name] = "\n\n".join(file.read_text().strip() for file in found) or NOT_YET
    fill(path, contents)


# parts that are no program of their own


def tests(out: Path, rehearse: bool) -> None:
    """Run the tests marked gpu, which are skipped in a rehearsal, and write the outcome of each."""
    report = out.absolute() / "report.xml"
    files = [path for path in sorted((HERE.parent / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    words = ["-m", "gpu", f"--junitxml={report}", *map(str, files[:1] if rehearse else files)]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *words], cwd=HERE.parent, check=False)
    rows: list[dict[str, Any]] = []
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 just written
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        rows.append({"test": f"{case.get('classname')}: {case.get('name')}", "outcome": outcome})
    if done.returncode not in (0, 1) or not rows:
        raise SystemExit(f"pytest ended with code {done.returncode}")
    print(write(out, "tests", rows, "Every test marked gpu: pytest -m gpu."))


def way(name: str, rehearse: bool, folder: Path) -> dict[str, Any]:
    """Train in one of the ways, and return the row; the work of a process of its own."""
    import selfsup
    from selfsup.run import Run

    sizes = ("backbone=resnet_tiny", "backbone.width=4", "batch_size=16", "data.train_size=72", "trainer.max_epochs=2")
    if not rehearse:
        sizes = ("backbone=resnet18", "batch_size=512", "data.train_size=25600", "trainer.max_epochs=5")
    extra = () if rehearse else ("trainer.precision=bf16-mixed", "data.image_size=32")
    accelerator = f"trainer.accelerator={'cpu' if rehearse else 'gpu'}"
    wanted = WAYS[name]
    if rehearse:  # torch has SyncBatchNorm on GPUs only, and to compile takes longer than the rehearsal
        wanted = tuple(word for word in wanted if word not in ("trainer.sync_batchnorm=true", "trainer.compile=true"))
    config = selfsup.load_config([*SHAPES, *sizes, *extra, accelerator, *wanted, f"run_dir={folder / 'run'}"])
    made = selfsup.train(config)
    times = (Path(made) if isinstance(made, Run) else Path(str(made))) / "times.csv"
    _, *lines = [line.split(",") for line in times.read_text().splitlines()]
    speeds = [float(line[2]) for line in lines[1:]]  # the first epoch starts, compiles and records
    median, low, high = summary(speeds)
    memory = float(lines[-1][3])
    return {"way": name, "images/s": round(median), "range": f"{low:.0f} to {high:.0f}", "most memory, MB": memory}


def ways(out: Path, rehearse: bool) -> None:
    """Train in every way, each in a process of its own, and write the table after each."""
    rows: list[dict[str, Any]] = []
    protocol = (
        "SimCLR on one device, drawn scenes of 32 px, batch 512, ResNet-18, bf16: images a second of the epochs after "
        "the first. With one rank nothing is sent: this is what the ways themselves cost."
    )
    out.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(WAYS):
        folder = out / f"run-{number}-{time.time_ns()}"
        words = [sys.executable, __file__, "--work", name, "--out", str(folder), *["--rehearse"] * rehearse]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: {done.stderr[-1500:]}", flush=True)
            rows.append({"way": name, "images/s": None, "failed": done.stderr.strip().splitlines()[-1][:200]})
        else:
            rows.append(json.loads(done.stdout.splitlines()[-1]))
        table = write(out, "ways.part", rows, protocol)
    print(table)
    if all(row["images/s"] is None for row in rows):
        raise SystemExit("no way of training worked")
    write(out, "ways", rows, protocol)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all that are missing")
    parser.add_argument("--list", action="store_true", help="print the parts with their commands and stop")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU with tiny settings")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with cifar10/ and imagenette/")
    parser.add_argument("--page", type=Path, help="written anew; docs/gpu.md, and none in a rehearsal")
    parser.add_argument("--work", choices=["tests", "ways", *WAYS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if options.work:
        options.out.mkdir(parents=True, exist_ok=True)
        if options.work in WAYS:
            print(json.dumps(way(options.work, options.rehearse, options.out)))
        else:
            {"tests": tests, "ways": ways}[options.work](options.out, options.rehearse)
        return
    if options.list:
        for name in PARTS:
            state = "there" if is_there(name, options.out, options.rehearse) else "missing"
            print(f"{name} ({state}): {' '.join(command(name, options.out, options.rehearse, options.root))}")
        return
    if not options.rehearse and not torch.cuda.is_available():
        raise SystemExit(
            "There is no GPU that torch can use; --rehearse runs every part on the CPU with tiny settings."
        )
    missing = [name for name in PARTS if not is_there(name, options.out, options.rehearse)]
    failed = [
        why for name in options.parts or missing if (why := run(name, options.out, options.rehearse, root=options.root))
    ]
    written = options.page or (None if options.rehearse else HERE.parent / "docs" / "gpu.md")
    if written:
        page(written, options.out, options.rehearse)
    if failed:
        raise SystemExit("\n\n".join(failed))


if __name__ == "__main__":
    main()
