"""Objectives and negatives beside the plain method: kNN accuracy on CIFAR-10 at one budget, seed by seed.

    python benchmarks/extensions.py --list                          every run, and whether it is there
    python benchmarks/extensions.py --root DIR                      what is missing
    python benchmarks/extensions.py --root DIR --only dcl --seeds 0
    python benchmarks/extensions.py --table                         the table of what is there
    python benchmarks/extensions.py --table --page                  the same, put into docs/extensions.md

DIR is a copy of CIFAR-10 as ``train/CLASS/`` and ``test/CLASS/``. Each case has a plain method and the same with one
thing in its place; both have one temperature, where there is one, and see the same images with the same seeds. Each run
is a process of its own and goes on where it was stopped; one that is done is not repeated. ``kept/extensions/`` keeps
the results of other machines, which the table shows where there is none of this one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import fill, hardware

import selfsup
from selfsup.config import load_config
from selfsup.data import load_splits
from selfsup.eval import extract_features, knn
from selfsup.tables import markdown_table

HERE = Path(__file__).parent
KEPT = HERE / "kept" / "extensions"
PAGE = HERE.parent / "docs" / "extensions.md"
IMAGES, EPOCHS, SEEDS = 5000, 8, (0, 1, 2)
K, TEMPERATURE = 20, 0.1
SHARED = (
    *("data=image_folder", "data.image_size=32", f"data.limit={IMAGES}", f"trainer.max_epochs={EPOCHS}"),
    *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.progress=false", "online.every_epochs=0"),
)
PROTOCOL = (
    f"CIFAR-10, {IMAGES:,} training images drawn with the seed, {EPOCHS} epochs of `experiment=small/simclr` or "
    "`small/moco` (a narrow convolutional network, AdamW) on a CPU; kNN accuracy in percent on all 10,000 test images, "
    f"k = {K}, temperature {TEMPERATURE}, with the training images as neighbours; weights of the last epoch. "
    "Mean over the seeds, and the standard deviation from two on. The verdict is *better* or *worse* where all paired "
    "differences have one sign over three seeds and their mean is above twice its standard error."
)
PLAIN, CHANGED = "plain", "changed"


@dataclass(frozen=True)
class Case:
    """A thing beside the method that it changes.

    Attributes:
        both: Settings of both.
        plain: Of the plain method alone.
        changed: Of the other alone.
        regime: In a few words, what it is tried at.
    """

    both: tuple[str, ...]
    plain: tuple[str, ...]
    changed: tuple[str, ...]
    regime: str


SIMCLR, MOCO = "experiment=small/simclr", "experiment=small/moco"
FEW = (SIMCLR, "batch_size=32", "optimizer.lr=0.003")
FOUR = (SIMCLR, "augment.counts=[4]")


def _at(temperature: float, objective: str, both: tuple[str, ...], regime: str) -> Case:
    """Return a case of an objective beside NT-Xent at the same temperature."""
    changed = (f"objective={objective}", f"objective.temperature={temperature}")
    return Case(both, (f"method.temperature={temperature}",), changed, regime)


def _four(objective: str) -> Case:
    """Return a case of an objective beside NT-Xent of several positives, both over four views."""
    plain = ("objective=multi_positive", "objective.temperature=0.2")
    return Case(FOUR, plain, (f"objective={objective}", "objective.temperature=0.2"), "SimCLR, 4 views")


CASES = {
    "dcl": _at(0.1, "dcl", FEW, "SimCLR, batch 32"),
    "dclw": _at(0.1, "dclw", FEW, "SimCLR, batch 32"),
    "sogclr": _at(0.1, "sogclr", FEW, "SimCLR, batch 32"),
    "isogclr": _at(0.1, "isogclr", FEW, "SimCLR, batch 32"),
    "macl": _at(0.1, "macl", FEW, "SimCLR, batch 32"),
    "debiased": _at(0.5, "debiased", (SIMCLR,), "SimCLR, 10 classes"),
    "hard_negatives": _at(0.5, "hard_negatives", (SIMCLR,), "SimCLR, 10 classes"),
    "align_uniform": Case((SIMCLR,), (), ("objective=align_uniform",), "SimCLR"),
    "kernel_infonce": Case(
        (SIMCLR,), ("method.temperature=0.2",), ("objective=kernel_infonce", "objective.gamma=1.0"), "SimCLR, γ = 1"
    ),
    "mv_dhel": _four("mv_dhel"),
    "mv_infonce": _four("mv_infonce"),
    "poly_view": _four("poly_view"),
    "cacr": Case(FOUR, ("objective=multi_positive",), ("objective=cacr",), "SimCLR, 4 views"),
    "decoupled_uniformity": Case(
        FOUR, ("objective=multi_positive",), ("objective=decoupled_uniformity",), "SimCLR, 4 views"
    ),
    "mochi": Case(
        (MOCO,),
        (),
        (
            "negatives=mochi",
            "negatives.hardest=128",
            "negatives.pairs=128",
            "negatives.with_query=32",
            "negatives.wait_epochs=1",
        ),
        "MoCo",
    ),
    "feature_transformation": Case((MOCO,), (), ("negatives=feature_transformation",), "MoCo"),
}


def runs(only: list[str] | None, seeds: list[int] | None) -> Iterator[tuple[str, str, int]]:
    """Give case, way and seed, both ways of a case and a seed beside each other: what is there can be paired."""
    for seed in seeds or SEEDS:
        for case in only or CASES:
            yield from ((case, way, seed) for way in (PLAIN, CHANGED))


def words(case: str, way: str) -> list[str]:
    """Return the settings of a run, but for its seed and its folders."""
    chosen = CASES[case]
    return [*chosen.both, *SHARED, *(chosen.plain if way == PLAIN else chosen.changed)]


def name_of(case: str, way: str, seed: int) -> str:
    """Return how the file of a run is called; cases with one plain run share it."""
    if way == PLAIN:
        case = next(other for other in CASES if words(other, PLAIN) == words(case, PLAIN))
    return f"{case}-{way}-seed{seed}"


def work(case: str, way: str, seed: int, options: argparse.Namespace) -> None:
    """Train and evaluate, in this process, what is not done."""
    name = name_of(case, way, seed)
    folder = options.out / name
    own = [f"data.root={options.root}", f"seed={seed}", f"run_dir={folder}"]
    tiny = ["trainer.max_epochs=1", "data.limit=256"] if options.rehearse else []
    config = load_config([*words(case, way), *own, *tiny, "resume=auto"])
    start = time.perf_counter()
    selfsup.train(config)
    seconds = time.perf_counter() - start
    splits = load_splits(config.data)
    assert splits.test is not None
    network = selfsup.load_backbone(folder)
    bank, queries = (extract_features(network, part, progress=False) for part in (splits.pretrain, splits.test))
    result = {
        "case": case,
        "way": way,
        "seed": seed,
        "words": words(case, way),
        "knn": knn(bank, queries, (K,), TEMPERATURE)[K],
        "train_images": len(bank),
        "test_images": len(queries),
        "seconds_of_the_last_part": round(seconds, 1),
        "machine": hardware(),
        "rehearsal": options.rehearse,
    }
    partial = folder.with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.rename(folder.with_suffix(".json"))  # what was stopped leaves nothing that looks done


def result(case: str, way: str, seed: int, out: Path) -> dict[str, Any] | None:
    """Return what a run found, here or among the kept; None where it is not, or has other settings than now."""
    for folder in (out, KEPT):
        file = folder / f"{name_of(case, way, seed)}.json"
        if file.exists():
            found: dict[str, Any] = json.loads(file.read_text())
            if found["words"] == words(case, way):
                return found
    return None


def table(out: Path) -> str:
    """Return the table of the pairs that are there; what is missing is named below it."""
    rows, missing, machines, rehearsed = [], [], set(), False
    for case, setup in CASES.items():
        pairs = [tuple(result(case, way, seed, out) for way in (PLAIN, CHANGED)) for seed in SEEDS]
        whole = [(a, b) for a, b in pairs if a is not None and b is not None]
        if len(whole) < len(SEEDS):
            missing.append(f"{case} ({len(SEEDS) - len(whole)} of {len(SEEDS)} seeds)")
        if not whole:
            continue
        machines |= {f"{m['processor']}, torch {m['torch']}" for pair in whole for m in (r["machine"] for r in pair)}
        rehearsed |= any(r["rehearsal"] for pair in whole for r in pair)
        sides = [[100 * r["knn"] for r in side] for side in zip(*whole, strict=True)]
        gaps = [b - a for a, b in zip(*sides, strict=True)]
        rows.append(
            {
                "name": f"`{case}`",
                "beside": setup.regime,
                "seeds": len(whole),
                "plain, %": spread(sides[0]),
                "with it, %": spread(sides[1]),
                "difference": f"{statistics.mean(gaps):+.1f}",
                "verdict": verdict(gaps),
            }
        )
    note = "REHEARSAL: tiny runs. " if rehearsed else ""
    text = f"{note}{PROTOCOL} Measured on: {'; '.join(sorted(machines)) or 'nothing yet'}.\n"
    if rows:
        text += f"\n{markdown_table(list(rows[0]), [list(map(str, row.values())) for row in rows])}\n"
    return text + (f"\nNot measured yet: {', '.join(missing)}.\n" if missing else "")


def spread(values: list[float]) -> str:
    """Return mean and standard deviation in words."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def verdict(gaps: list[float]) -> str:
    """Say what paired differences show; fewer than three show nothing."""
    if len(gaps) < 3:
        return "too few seeds"
    mean, error = statistics.mean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5
    if abs(mean) <= 2 * error or len({gap > 0 for gap in gaps}) > 1:
        return "no difference shown"
    return "better here" if mean > 0 else "worse here"


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CASES), help="all by default")
    parser.add_argument("--seeds", nargs="+", type=int, help=f"{SEEDS} by default")
    parser.add_argument("--root", type=Path, default=Path("data/cifar10"), help="folder with train/ and test/")
    parser.add_argument("--out", type=Path, default=Path("runs/extensions"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="print the runs and stop")
    parser.add_argument("--table", action="store_true", help="print the table of what is there and stop")
    parser.add_argument("--page", action="store_true", help="also put it into docs/extensions.md")
    parser.add_argument("--rehearse", action="store_true", help="one epoch of 256 images")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.root, options.out = options.root.absolute(), options.out.absolute()
    if options.work:
        torch.set_num_threads(options.threads)
        work(options.work[0], options.work[1], int(options.work[2]), options)
        return
    for case, way, seed in runs(options.only, options.seeds):
        there = result(case, way, seed, options.out) is not None
        if options.list:
            print("there  " if there else "missing", case, way, seed)
        elif not there and not options.table:
            print(case, way, seed, flush=True)
            options.out.mkdir(parents=True, exist_ok=True)
            own = [f"--root={options.root}", f"--out={options.out}", f"--threads={options.threads}"]
            own += ["--rehearse"] * options.rehearse
            subprocess.run([sys.executable, __file__, *own, "--work", case, way, str(seed)], check=True)
    if not options.list:
        text = table(options.out)
        print(text)
        if options.page:
            fill(PAGE, {"extensions": text.strip()})


if __name__ == "__main__":
    main()
