"""CIFAR-10 and Imagenette for every method, beside lightly: accuracy, seconds and memory at equal images seen.

    python benchmarks/standard.py --list                                      every run, and whether it is there
    python benchmarks/standard.py --budget cores --root DIR                   two CPU cores: a narrow ResNet, short runs
    python benchmarks/standard.py --budget gpu --root DIR                     one GPU: ResNet-18, 200 epochs
    python benchmarks/standard.py --budget cores --root DIR --data cifar10 --methods simclr --by selfsup --seeds 0
    python benchmarks/standard.py --table                                     the tables of what is there

DIR holds ``cifar10/`` (``train/CLASS/``, ``test/CLASS/``: a copy as JPEG) and ``imagenette/`` (``train/``, ``val/``:
the archive whose shorter side is 160 pixels). Ours are the presets ``experiment=cifar10/NAME`` with the settings of
``setups.py`` over them; lightly's are ``rivals.py``, for the methods that are there, where lightly is installed.

A table also shows what ``kept/standard/`` keeps of other machines, where there is no result of this one.

Each run is a process of its own, one after the other. One that was stopped goes on from its last epoch, its seconds
too, and one that is done is not repeated. A run that fails is told at the end; the others go on. One evaluator judges
all networks, once, with the weights of the last epoch. ``--rehearse`` trains for two epochs with a tiny network.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from measure import fill, hardware, processor_seconds, synchronize, write
from setups import SETUPS, Setup
from torch import nn

import selfsup
from selfsup.config import TrainConfig, load_config
from selfsup.data import load_splits
from selfsup.eval import extract_features, knn, linear_probe, raw_pixels
from selfsup.nn import build_backbone

HERE = Path(__file__).parent
KEPT = HERE / "kept" / "standard"  # of machines where it was measured; tables show them where there is no other
FIRST = ("simclr", "moco", "swav", "wmse", "densecl", "pixpro")  # three seeds on two cores; the others one
RIVALLED = ("simclr", "moco", "swav", "byol", "barlow_twins", "vicreg", "dino")  # rivals.RIVALS, without its import
BASELINES = ("raw_pixels", "untrained")
PRESETS = (Path(selfsup.__file__).parent / "configs/experiment/cifar10").glob("*.yaml")
METHODS = sorted(file.stem for file in PRESETS if file.stem != "distill")  # which needs a teacher: see distil.py
OURS, THEIRS = "selfsup", "lightly"
KS, TEMPERATURE = (20, 200), 0.1
PROBE_EPOCHS = 100
ALONE = ("online.every_epochs=0", "trainer.devices=1", "trainer.progress=false")
#: A rehearsal's, over everything else.
TINY = (
    *("backbone=resnet_tiny", "backbone.width=4", "trainer.max_epochs=2", "trainer.accelerator=cpu"),
    *("trainer.precision=32-true", "trainer.compile=false", "batch_size=128", "data.workers=0"),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A line of the plan: a method with one seed, ours or a rival's, or a baseline."""

    budget: str
    data: str
    method: str
    by: str
    seed: int

    @property
    def setup(self) -> Setup:
        """Where and how it runs."""
        return SETUPS[self.budget][self.data]

    def folder(self, out: Path) -> Path:
        """Return its folder; beside it lies its result."""
        return out / self.budget / self.data / f"{self.method}-{self.by}-seed{self.seed}"

    def result(self, out: Path) -> Path:
        """Return the file of what was measured, which is there when the run is done."""
        folder = self.folder(out)
        return folder.with_name(f"{folder.name}.json")

    def settings(self, out: Path, root: Path, rehearse: bool) -> list[str]:
        """Return the settings of the training."""
        preset = "simclr" if self.method in BASELINES else self.method
        own = [f"data.root={root / self.data}", f"seed={self.seed}", f"run_dir={self.folder(out)}"]
        return [f"experiment=cifar10/{preset}", *self.setup.settings, *ALONE, *(TINY if rehearse else ()), *own]


class Clock(pl.Callback):
    """Counts seconds, steps and memory of a training, and keeps them in its checkpoints, so that they go on with it."""

    def __init__(self) -> None:
        self.known: dict[str, float] = {"seconds": 0.0, "processor_seconds": 0.0, "steps": 0, "epochs": 0, "mb": 0.0}
        self._since = self._processor = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count."""
        self._since, self._processor = time.perf_counter(), processor_seconds()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the epoch; the checkpoint is written after that."""
        self.known = self.so_far()
        self._since, self._processor = time.perf_counter(), processor_seconds()
        self.known |= {"steps": trainer.global_step, "epochs": trainer.current_epoch + 1}
        self.known["mb"] = max(self.known["mb"], memory_mb())

    def so_far(self) -> dict[str, float]:
        """Return what is known, with the seconds until now."""
        if not self._since:
            return dict(self.known)
        synchronize()
        now, processor = time.perf_counter() - self._since, processor_seconds() - self._processor
        both = {"seconds": now, "processor_seconds": processor}
        return self.known | {name: self.known[name] + more for name, more in both.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; one that is written in the middle of an epoch has the seconds until there."""
        return self.so_far()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.known = dict(state_dict)

    @classmethod
    def of(cls, folder: Path) -> dict[str, float] | None:
        """Return what the last checkpoint of a run keeps, or None before the first."""
        file = folder / "checkpoints" / "last.ckpt"
        return None if not file.exists() else torch.load(file, weights_only=False)["callbacks"][cls.__name__]


def memory_mb() -> float:
    """Return the most memory of the GPU, where one is in use, or of the process, without workers."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def train_theirs(run: Run, config: TrainConfig, root: Path, clock: Clock) -> None:
    """Train lightly's method on the network, images and batch of ours, or go on where it was stopped."""
    from rivals import RIVALS, loader, transform_for

    pl.seed_everything(run.seed, verbose=False)
    images = next(
        place for place in (root / run.data, *sorted((root / run.data).iterdir())) if (place / "train").is_dir()
    )
    facts = load_splits(config.data).pretrain
    normalize = {"mean": list(facts.normalization.mean), "std": list(facts.normalization.std)}
    transform = transform_for(run.method, config.data.image_size, normalize)
    on_gpu = config.trainer.accelerator == "gpu"
    workers = 0 if config.data.workers == 0 else 8 if on_gpu else 2
    network = build_backbone(config.backbone, facts.channels, facts.normalization)
    module = RIVALS[run.method](network, config.batch_size, config.trainer.max_epochs)
    folder = Path(str(config.run_dir)) / "checkpoints"
    keep = pl.callbacks.ModelCheckpoint(folder, save_last=True, save_top_k=0)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "devices": 1}
    how = {"accelerator": config.trainer.accelerator, "precision": config.trainer.precision}
    trainer = pl.Trainer(max_epochs=config.trainer.max_epochs, callbacks=[clock, keep], **how, **quiet)
    last = folder / "last.ckpt"
    batches = loader(images / "train", transform, config.batch_size, workers)
    trainer.fit(module, batches, ckpt_path=str(last) if last.exists() else None, weights_only=False)


def trained(run: Run, config: TrainConfig, root: Path) -> tuple[nn.Module, dict[str, float]]:
    """Train where that is not done, and return the network and what the clock says."""
    folder = Path(str(config.run_dir))
    done = Clock.of(folder)
    if done is None or done["epochs"] < config.trainer.max_epochs:
        if run.by == OURS:
            selfsup.train(dataclasses.replace(config, resume="auto"), [Clock()])
        else:
            train_theirs(run, config, root, Clock())
        done = Clock.of(folder)
    assert done is not None
    if run.by == OURS:
        return selfsup.load_backbone(folder), done
    kept = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False, map_location="cpu")["state_dict"]
    own = {name.removeprefix("backbone."): value for name, value in kept.items() if name.startswith("backbone.")}
    network = fresh(config)
    network.load_state_dict(own)
    return network, done


def fresh(config: TrainConfig) -> nn.Module:
    """Return the network with random weights."""
    torch.manual_seed(config.seed)
    facts = load_splits(config.data).pretrain
    return build_backbone(config.backbone, facts.channels, facts.normalization)


def work(run: Run, out: Path, root: Path, rehearse: bool) -> None:
    """Train and evaluate, in this process, what of it is not done."""
    if run.result(out).exists():
        return
    run.folder(out).parent.mkdir(parents=True, exist_ok=True)
    config = load_config(run.settings(out, root, rehearse))
    facts: dict[str, float] = {}
    if run.method == "raw_pixels":
        network = None
    elif run.method == "untrained":
        network = fresh(config)
    else:
        network, facts = trained(run, config, root)
    start = time.perf_counter()
    splits = load_splits(config.data)
    assert splits.test is not None
    if network is None:
        bank, queries = raw_pixels(splits.train), raw_pixels(splits.test)
    else:
        network.to(memory_format=torch.channels_last)
        if config.trainer.accelerator == "gpu":
            network.cuda()
        bank, queries = (extract_features(network, part, progress=False) for part in (splits.train, splits.test))
    ks = tuple(min(k, len(bank)) for k in KS)
    found = knn(bank, queries, ks, TEMPERATURE)
    epochs = 5 if rehearse else PROBE_EPOCHS
    probe = linear_probe(bank, queries, epochs=epochs, seed=run.seed, progress=False)
    result = {
        **dataclasses.asdict(run),
        **{f"knn_{k}": found[cut] for k, cut in zip(KS, ks, strict=True)},
        "linear_probe": probe.accuracy,
        "selected_on": probe.selected_on,
        "train_images": len(bank),
        "test_images": len(queries),
        "training": facts,
        "evaluation_seconds": time.perf_counter() - start,
        "machine": hardware(),
        "rehearsal": rehearse,
    }
    partial = run.result(out).with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.rename(run.result(out))  # what was stopped leaves nothing that looks done


def plan(options: argparse.Namespace) -> Iterator[Run]:
    """Give the runs that are asked for, the first seed of all methods before the second."""
    wanted = options.methods or [*BASELINES, *FIRST, *(m for m in METHODS if m not in FIRST)]
    several = FIRST if options.budget == "cores" else ()
    for data, seed, method, by in itertools.product(options.data, options.seeds or range(3), wanted, options.by):
        if (options.seeds or seed == 0 or method in several) and (by == OURS or method in RIVALLED):
            yield Run(options.budget, data, method, by, seed)


def result_of(run: Run, out: Path) -> Path | None:
    """Return the file of what was measured: in ``out``, else among the results that are kept; None where neither is."""
    return next((file for file in (run.result(out), run.result(KEPT)) if file.exists()), None)


def table(runs: Sequence[Run], out: Path) -> str:
    """Write ``standard.json`` and ``standard.md`` of each budget and kind of data, and return all the Markdown.

    What was not measured is named below the table.
    """
    texts = []
    for budget, data in dict.fromkeys((run.budget, run.data) for run in runs):
        chosen = [run for run in runs if (run.budget, run.data) == (budget, data)]
        setup = SETUPS[budget][data]
        rows, machines, missing = [], set(), []
        for method, by in dict.fromkeys((run.method, run.by) for run in chosen):
            files = [result_of(run, out) for run in chosen if (run.method, run.by) == (method, by)]
            results = [json.loads(file.read_text()) for file in files if file is not None]
            if not results:
                missing.append(method if method in BASELINES or by == OURS else f"{method} by {by}")
                continue
            machines |= {
                f"{m['processor']}, GPU {m['GPU']}, torch {m['torch']}" for m in (r["machine"] for r in results)
            }
            rows.append(row(method, by, results, len(files), setup))
        if not rows:
            texts.append(f"### {data}\n\nNot measured yet.\n")
            continue
        tiny = "REHEARSAL: tiny settings. " if any(r["rehearsal"] for r in rows) else ""
        protocol = (
            f"{setup.words}. {tiny}Test images, weights of the last epoch; kNN: temperature {TEMPERATURE}, "
            f"all training images as neighbours; linear probe: {PROBE_EPOCHS} epochs on fixed features, "
            "its settings chosen on a tenth of the training images, on which the network was trained too, without "
            "labels. Mean of the seeds and, from two on, the lowest and the highest. Seconds are of training, without "
            "start-up and evaluation; memory is that of the GPU, or of the process without its loader's workers. "
            f"Measured on: {'; '.join(sorted(machines))}."
        )
        shown = [{key: value for key, value in line.items() if key != "rehearsal"} for line in rows]
        texts.append(f"### {data}\n\n{write(out / budget / data, 'standard', shown, protocol)}")
        if missing:
            texts.append(f"Not measured yet: {', '.join(missing)}.\n")
    return "\n".join(texts)


def row(method: str, by: str, results: Sequence[dict[str, Any]], wanted: int, setup: Setup) -> dict[str, Any]:
    """Return the table's row of a method, over its seeds."""

    def percent(key: str) -> str:
        values = [100 * r[key] for r in results]
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        return f"{statistics.mean(values):.1f}{spread}"

    training = [r["training"] for r in results if r["training"]]

    def middle(key: str) -> float | None:
        return statistics.median(t[key] for t in training) if training else None

    seconds, steps = middle("seconds"), middle("steps")
    line = {
        "method": method,
        "by": "–" if method in BASELINES else by,
        "seeds": f"{len(results)} of {wanted}",
        **{f"kNN, k = {k}, %": percent(f"knn_{k}") for k in KS},
        "linear probe, %": percent("linear_probe"),
        "epochs": middle("epochs"),
        "seconds": seconds and round(seconds),
        "core-seconds": round(middle("processor_seconds") or 0) or None,
        "ms a step": 1000 * seconds / steps if seconds and steps else None,
        "most MB": middle("mb"),
    }
    if setup.published:
        known = dict(pair.split(" ", 1) for pair in setup.published.split(", "))
        line["published by lightly, % (minutes)"] = known.get(method)
    return {**line, "rehearsal": any(r["rehearsal"] for r in results)}


def run_all(runs: Sequence[Run], options: argparse.Namespace) -> list[str]:
    """Do what is missing, each in a process of its own; return what failed."""
    failed = []
    for number, run in enumerate(runs, 1):
        if run.result(options.out).exists():
            continue
        name = f"{run.data}, {run.method} by {run.by}, seed {run.seed}"
        print(f"{number} of {len(runs)}: {name}", flush=True)
        words = [f"--out={options.out}", f"--root={options.root}", f"--threads={options.threads}"]
        words += [f"--work={json.dumps(dataclasses.asdict(run))}", *["--rehearse"] * options.rehearse]
        done = subprocess.run([sys.executable, __file__, *words], check=False)
        if done.returncode:
            failed.append(f"{name} ended with code {done.returncode}")
    return failed


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=list(SETUPS), default="cores")
    parser.add_argument("--data", nargs="+", choices=["cifar10", "imagenette"], default=["cifar10", "imagenette"])
    parser.add_argument("--methods", nargs="+", choices=[*BASELINES, *METHODS], help="all by default")
    parser.add_argument("--by", nargs="+", choices=[OURS, THEIRS], default=[OURS, THEIRS])
    parser.add_argument("--seeds", nargs="+", type=int, help="0; on two cores 0, 1 and 2 for " + ", ".join(FIRST))
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with cifar10/ and imagenette/")
    parser.add_argument("--out", type=Path, default=Path("runs/standard"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="print the runs and stop")
    parser.add_argument("--table", action="store_true", help="write the tables of what is there and stop")
    parser.add_argument("--page", type=Path, help="also put them between the marks of this page: docs/standard.md")
    parser.add_argument("--rehearse", action="store_true", help="two epochs of a tiny network on the CPU")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        torch.set_num_threads(options.threads)
        work(Run(**json.loads(options.work)), options.out, options.root.absolute(), options.rehearse)
        return
    runs = list(plan(options))
    if options.list:
        for run in runs:
            print("there  " if run.result(options.out).exists() else "missing", *dataclasses.astuple(run))
        return
    failed = [] if options.table else run_all(runs, options)
    text = table(runs, options.out)
    print(text)
    if options.page:
        fill(options.page, {options.budget: text.strip()})
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
