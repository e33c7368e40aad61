"""A small network that learns from a larger one, beside the same network that learns alone for as long, on CIFAR-10.

    python benchmarks/distil.py --root DIR              teacher, student alone, students that are taught; one CPU core
    python benchmarks/distil.py --root DIR --ways alone distilled
    python benchmarks/distil.py --table                 the table of what is there, or else of what is kept
    python benchmarks/distil.py --root DIR --rehearse   tiny networks

DIR holds ``cifar10/`` (``train/CLASS/``, ``test/CLASS/``: a copy as JPEG). The student has a quarter of the teacher's
weights. ``alone`` trains for ``EPOCHS``; of every other way a short run is timed beside one of it, in seconds of a
core, and it then trains for as many whole epochs as fit into the same core-seconds. Training goes on where it was
stopped, and what is done is not done again: each result is a file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from measure import fill, hardware, write
from standard import Clock

import selfsup
from selfsup.config import load_config
from selfsup.data import load_splits
from selfsup.eval import extract_features, knn, linear_probe
from selfsup.nn import build_backbone

KEPT = Path(__file__).parent / "kept" / "distil"
BANK, K, TEMPERATURE, PROBE_EPOCHS = 20_000, 20, 0.07, 15
TEACHER_EPOCHS, EPOCHS = 4, 3
#: Those of experiment=cifar10_fast, and where it runs.
SHARED = (
    "data=image_folder",
    "data.image_size=32",
    "data.workers=0",
    "backbone=convnet",
    "backbone.blocks=[1,1,1,1]",
    "batch_size=128",
    "augment.sizes=[24]",
    "augment.override={scale: [0.2, 1.0]}",
    "optimizer=adamw",
    "optimizer.lr=0.002",
    "optimizer.scaling=none",
    "optimizer.weight_decay=0.01",
    "optimizer.warmup_epochs=1",
    "online.every_epochs=0",
    "trainer.precision=bf16-mixed",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.progress=false",
)
ALONE = ("method=simclr", "augment=simclr", "method.temperature=0.2", "method.head_layers=2")
TAUGHT = ("method=distill", "augment=distill", "method.teacher=TEACHER", "method.queue_size=4096")
WIDE, NARROW = ("backbone.width=32",), ("backbone.width=16",)
#: How the student learns; TEACHER stands for the teacher's run.
WAYS: dict[str, tuple[str, ...]] = {
    "alone": ALONE,
    "distilled": TAUGHT,
    "similarity only": (*TAUGHT, "method.spatial_weight=0"),
    "contrast of cells": (*TAUGHT, "method.spatial=contrast"),
}
TINY = ("data.limit=600", "method.queue_size=256")
FEW = ("data.limit=6400",)  # images of the timing


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where runs lie, where their images are, and whether they are tiny."""

    out: Path
    root: Path
    rehearse: bool

    def settings(self, name: str) -> list[str]:
        """Return the settings of the teacher's training, or of a way of the student's."""
        own = (*ALONE, *WIDE) if name == "teacher" else (*WAYS[name], *NARROW)
        words = [word.replace("TEACHER", str(self.out / "teacher")) for word in (*own, *SHARED)]
        tiny = [word for word in TINY if TAUGHT[0] in own or not word.startswith("method")] if self.rehearse else []
        return [*words, f"data.root={self.root / 'cifar10'}", f"data.cache={self.out / 'cache'}", *tiny]


def train(plan: Plan, name: str, epochs: int, folder: Path, *others: str) -> dict[str, float]:
    """Train, or go on, and return the clock's seconds, core-seconds and steps."""
    known = Clock.of(folder)
    if known is None or known["epochs"] < epochs:
        words = [*plan.settings(name), *others, f"trainer.max_epochs={epochs}", f"run_dir={folder}", "resume=auto"]
        selfsup.train(load_config(words), [Clock()])
        known = Clock.of(folder)
    assert known is not None
    return known


def epochs_of(plan: Plan, name: str) -> int:
    """Return the epochs of a way that take as many core-seconds as the student's alone."""
    whole = 2 if plan.rehearse else EPOCHS
    if name == "alone":
        return whole
    few = () if plan.rehearse else FEW
    first, own = (train(plan, way, 2, plan.out / "timed" / way, *few)["processor_seconds"] for way in ("alone", name))
    return max(1, int(whole * first / own))


def measured(plan: Plan, network: torch.nn.Module) -> dict[str, float]:
    """Return the accuracies of a network on the test images."""
    splits = load_splits(load_config(plan.settings("alone")).data)
    assert splits.test is not None
    count = len(splits.train)
    evenly = torch.arange(min(BANK, count)) * count // min(BANK, count)  # they are sorted by class
    parts = splits.train.subset(evenly), splits.test
    bank, queries = (extract_features(network, part, progress=False) for part in parts)
    k, epochs = min(K, len(bank)), 3 if plan.rehearse else PROBE_EPOCHS
    probe = linear_probe(bank, queries, epochs=epochs, seed=0, progress=False)
    weights = sum(parameter.numel() for parameter in network.parameters())
    facts = {"weights": weights, "train_images": len(bank), "test_images": len(queries)}
    return {"knn": knn(bank, queries, (k,), TEMPERATURE)[k], "linear_probe": probe.accuracy, **facts}


def work(plan: Plan, name: str) -> None:
    """Train and measure one row of the table, unless its file is there."""
    file = plan.out / f"{name}.json"
    if file.exists():
        return
    training: dict[str, float] = {}
    if name == "untrained":
        config = load_config(plan.settings("alone"))
        facts = load_splits(config.data).pretrain
        torch.manual_seed(0)
        network: torch.nn.Module = build_backbone(config.backbone, facts.channels, facts.normalization)
    else:
        teaches = TEACHER_EPOCHS if not plan.rehearse else 2
        epochs = teaches if name == "teacher" else epochs_of(plan, name)
        training = train(plan, name, epochs, plan.out / name)
        network = selfsup.load_backbone(plan.out / name)
    result = {"name": name, **measured(plan, network), "training": training}
    result |= {"machine": hardware(), "rehearsal": plan.rehearse}
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.rename(file)  # what was stopped leaves nothing that looks done


def rows(out: Path) -> Iterator[Mapping[str, Any]]:
    """Give the rows of the table, from ``out`` or else from what is kept."""
    for name in ("untrained", *WAYS, "teacher"):
        file = next((folder / f"{name}.json" for folder in (out, KEPT) if (folder / f"{name}.json").exists()), None)
        if file is None:
            continue
        found = json.loads(file.read_text())
        training = found["training"]
        yield {
            "network": name if name in ("teacher", "untrained") else f"student, {name}",
            "weights": f"{found['weights']:,}",
            "kNN, %": f"{100 * found['knn']:.1f}",
            "linear probe, %": f"{100 * found['linear_probe']:.1f}",
            "epochs": training.get("epochs"),
            "steps": training.get("steps"),
            "core-seconds": round(training["processor_seconds"]) if training else None,
        }


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with cifar10/")
    parser.add_argument("--out", type=Path, default=Path("runs/distil"))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="write the table of what is there and stop")
    parser.add_argument("--page", type=Path, help="also put it between the marks of this page: docs/methods/distill.md")
    parser.add_argument("--rehearse", action="store_true", help="two short epochs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    plan = Plan(options.out.absolute(), options.root.absolute(), options.rehearse)
    plan.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        for name in ("untrained", "teacher", *options.ways):
            work(plan, name)
    tiny = "REHEARSAL: tiny settings. " if options.rehearse else ""
    protocol = (
        f"{tiny}CIFAR-10 as JPEG, nine tenths of the 50,000 training images, seed 0, the settings of "
        "experiment=cifar10_fast (four convolutions, crops of 24 pixels, batch 128, AdamW, bf16): width 32 for the "
        f"teacher, which SimCLR trained, 16 for the student. kNN: k = {K}, temperature {TEMPERATURE}, {BANK:,} "
        f"training images as neighbours; linear probe: {PROBE_EPOCHS} epochs on features of these; 10,000 test images. "
        "Core-seconds are of training, without start-up and evaluation; those of the teacher are not in its students'."
    )
    text = write(options.out, "distil", list(rows(plan.out)), protocol)
    print(text)
    if options.page:
        fill(options.page, {"distil": text.strip()})


if __name__ == "__main__":
    main()
