"""Whether two commits compute the same: every method trained, evaluated and embedded by both, bit by bit.

  python benchmarks/same.py BEFORE [AFTER] [--methods simclr,moco]

Each commit is laid out in a folder of its own and does the same small work with the same seeds: every method of the
older one is trained for two epochs on 72 drawn scenes, evaluated by the protocols below, and its features are written
to a file. The newer one also evaluates the runs of the older: old run folders open. What differs is printed, with the
exit code 1. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
METHODS = (
    "simclr,moco,moco_v1,moco_v3,swav,wmse,densecl,pixpro,pixcontrast,"
    "byol,simsiam,barlow_twins,vicreg,dino,supcon,nnclr"
)
PROTOCOLS = "diagnostics,knn,knn_loo,retrieval,clustering,linear_probe,logistic,few_shot,segmentation,invariance"
# the names of the older commit; the newer reads them too
QUICK = ["eval.probe_epochs=2", "eval.few_shot_episodes=20", "eval.few_shot_shots=[1]", "eval.few_shot_queries=1"]
QUICK += ["eval.segmentation_epochs=1", "eval.figures=false"]
#: Says how long something took or where it lies, and is never the same.
APART = ("seconds", "memory", "images_per_second", "checkpoint", "time", "date", "run", "peak")


def work(folder: Path, methods: list[str], others: Path | None) -> None:
    """Train, evaluate and embed with the selfsup that this process imports."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import TINY, tiny

    from selfsup.cli import main

    def must(*arguments: str) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            if main(arguments) != 0:
                raise SystemExit(f"failed: selfsup {' '.join(arguments)}")

    data = [setting for setting in TINY if setting.startswith("data.")]
    for name in methods:
        run = folder / name
        must("train", *tiny(name), f"run_dir={run}")
        for checkpoint in [run, *([others / name] if others else [])]:
            into = folder / f"{name}-{'own' if checkpoint == run else 'other'}"
            must("evaluate", f"checkpoint={checkpoint}", f"run_dir={into}", *data, *QUICK, "--only", PROTOCOLS)
        must("embed", str(run), "--out", str(folder / f"{name}.npz"), *data)


def differences(old: Path, new: Path, methods: list[str]) -> list[str]:
    """What differs between the work of two commits, a line each."""
    import numpy as np
    import torch

    found = []
    for name in methods:
        one, two = (torch.load(path / name / "checkpoints" / "last.ckpt", weights_only=True) for path in (old, new))
        found += [
            f"{name}: {line}" for key in ("state_dict", "optimizer_states") for line in unlike(one[key], two[key])
        ]
        rows, others = (rows_of(path / name / "metrics.csv") for path in (old, new))
        for key in sorted({*rows[0]} & {*others[0]}):
            if [row[key] for row in rows] != [row[key] for row in others]:
                found.append(f"{name}: metrics.csv: {key}")
        before = records_of(old / f"{name}-own")
        for which in ("own", "other"):
            after = records_of(new / f"{name}-{which}")
            for identity, value in before.items():
                if identity not in after:
                    found.append(f"{name}: no record in the {which} run: {identity}")
                elif after[identity] != value:
                    found.append(f"{name}: {which} run: {identity}: {value} and {after[identity]}")
        features = [np.load(path / f"{name}.npz", allow_pickle=False)["features"] for path in (old, new)]
        if not np.array_equal(*features):
            found.append(f"{name}: embedded features")
    return found


def unlike(one: Any, two: Any, where: str = "") -> list[str]:
    """The places at which two nested states differ; what only one of them has is one."""
    import torch

    if isinstance(one, dict) and isinstance(two, dict):
        lines = [f"{where}.{key} is in one only" for key in {*one} ^ {*two}]
        return lines + [line for key in one if key in two for line in unlike(one[key], two[key], f"{where}.{key}")]
    if isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        return [line for i, (a, b) in enumerate(zip(one, two, strict=True)) for line in unlike(a, b, f"{where}.{i}")]
    same = torch.equal(one, two) if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor) else one == two
    return [] if same else [where.lstrip(".")]


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def records_of(run: Path) -> dict[tuple[str, ...], float]:
    """The value of each record, by protocol, split, metric and every plain setting that both commits write alike."""
    known = ("protocol", "split", "metric", "k", "temperature", "weighting", "shots", "ways", "transform", "features")
    records = json.loads((run / "results.json").read_text())["results"]
    found: dict[tuple[str, ...], float] = {}
    for record in records:
        if not any(word in record["metric"] for word in APART):
            found[tuple(f"{key}={record[key]}" for key in known if key in record)] = record["value"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after", nargs="?", default="HEAD")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--keep", metavar="DIR", help="keep the runs there")
    parser.add_argument("--work", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    methods = options.methods.split(",")
    if options.work:
        work(Path(options.work[0]), methods, Path(options.work[1]) if len(options.work) > 1 else None)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary).absolute()
        sides = [("before", options.before), ("after", options.after)]
        try:
            for i, (side, commit) in enumerate(sides):
                tree, runs = folder / f"{side}-code", folder / side
                runs.mkdir(parents=True)
                subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "-q", "--detach", tree, commit], check=True)
                given = [str(runs), *([str(folder / sides[0][0])] if i else [])]
                command = [sys.executable, __file__, commit, "--methods", options.methods, "--work", *given]
                environment = {**os.environ, "PYTHONPATH": str(tree), "XDG_STATE_HOME": str(folder / "state")}
                subprocess.run(command, env=environment, cwd=folder, check=True)
        finally:
            for side, _ in sides:
                subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", folder / f"{side}-code"])
        found = differences(folder / "before", folder / "after", methods)
    for line in found:
        print(line)
    print(f"{len(methods)} methods: {len(found)} differences between {options.before} and {options.after}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
