"""Methods of the transformer era beside SimCLR, MoCo v3 and DINO: one small transformer on Imagenette, one CPU core.

    python benchmarks/transformers.py --list                           every row, and whether it is there
    python benchmarks/transformers.py --root DIR                       train and judge what is missing
    python benchmarks/transformers.py --root DIR --methods mae dino    some of them
    python benchmarks/transformers.py --table --page docs/transformers.md

DIR holds ``imagenette/`` (``train/``, ``val/``: the archive whose shorter side is 160 pixels). All see the same images
the same number of times. Each row is a process of its own; one that was stopped goes on from its last epoch, its
seconds too, and one that is done is not repeated. The table also shows what ``kept/transformers/`` keeps of other
machines. ``--more WORDS`` are settings over those of every row, for trials: give them a folder of their own by
``--out``. ``--rehearse`` trains for two epochs with a tiny network on few images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# timm's other way to compute attention: at 64 tokens on a CPU the backward pass of the fused one takes half of a step
os.environ.setdefault("TIMM_FUSED_ATTN", "0")

import torch
from measure import fill, hardware, write
from standard import Clock

import selfsup
from selfsup.config import load_config

HERE = Path(__file__).parent
KEPT = HERE / "kept" / "transformers"
EPOCHS, BATCH, SEED, K, TEMPERATURE = 3, 64, 0, 20, 0.07
#: The feature of those whose class token learns nothing is the mean of the patches.
MEAN = ("mae", "simmim", "data2vec", "ijepa", "capi")
BASELINES = {"untrained": "vit_small", "untrained, mean of the patches": "vit_small_mean"}
METHODS = (
    *("simclr", "mae", "dino", "ijepa", "dinov2", "data2vec", "simmim", "lejepa", "ibot", "moco_v3", "visreg"),
    *("vicregl", "msn", "capi"),
)
NETWORK = ("backbone.kwargs={patch_size: 8, embed_dim: 96, depth: 4, num_heads: 3}",)
#: Of methods that have no class token.
TOKENS = {
    "ijepa": ("+backbone.kwargs.class_token=false",),
    "capi": ("+backbone.kwargs.class_token=false", "+backbone.kwargs.reg_tokens=4"),
}
IMAGES = ("data=imagenette", "data.image_size=64", "data.source_size=80")
TRAINING = (
    f"batch_size={BATCH}",
    f"trainer.max_epochs={EPOCHS}",
    "trainer.precision=bf16-mixed",
    *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.progress=false", "online.every_epochs=0"),
)
TWO_VIEWS = ("augment.override={scale: [0.25, 1.0]}",)
CROPS = (
    "augment.sizes=[64,32]",
    "augment.counts=[2,2]",
    "augment.override={scale: [0.35, 1.0]}",
    "augment.local_override={scale: [0.1, 0.35]}",
)
#: In place of the rates of presets that were made for a convolutional network.
RATE = ("optimizer.lr=0.001", "optimizer.weight_decay=0.04")
#: Over the preset ``experiment=small/NAME``.
OWN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("simclr", "moco_v3", "lejepa", "visreg", "vicregl"), (*TWO_VIEWS, *RATE)),
    **dict.fromkeys(("ibot", "dinov2", "msn"), CROPS),
    "dino": (*CROPS, *RATE),
}
JUDGED = ("knn", "linear_probe", "attentive_probe", "diagnostics")
JUDGE = (
    f"eval.knn.k=[{K}]",
    f"eval.knn.temperatures=[{TEMPERATURE}]",
    *("eval.attentive_probe.epochs=10", "eval.attentive_probe.images=4000"),
    "eval.attentive_probe.learning_rates=[0.01,0.05,0.2]",  # small networks want the end of the authors' grid, and more
    "eval.attentive_probe.weight_decays=[0.0005]",
    *("eval.precision=bf16", "eval.figures=false", "eval.cache=false", "accelerator=cpu"),
)
#: A rehearsal's, over everything else.
TINY = (
    *("trainer.max_epochs=2", "trainer.precision=32-true", "data.limit=64"),
    *("batch_size=16", "optimizer.warmup_epochs=0"),
    "backbone.kwargs={patch_size: 8, embed_dim: 12, depth: 1, num_heads: 3}",
)
TINY_JUDGE = ("eval.knn.k=[2]", "eval.linear_probe.epochs=2", "eval.attentive_probe.epochs=1")


def network(method: str) -> tuple[str, ...]:
    """Return the settings of a row's network."""
    name = BASELINES.get(method, "vit_small_mean" if method in MEAN else "vit_small")
    return (f"backbone={name}", *NETWORK, *TOKENS.get(method, ()))


def images(root: Path) -> tuple[str, ...]:
    """Return the settings of the images."""
    return (*IMAGES, f"data.root={root / 'imagenette'}")


def file_of(method: str, out: Path) -> Path:
    """Return the file of what was measured, which is there when the row is done."""
    return out / f"{method.replace(', ', '_').replace(' ', '_')}.json"


def settings(method: str) -> tuple[str, ...]:
    """Return what its training is over the images, as one writes it behind ``selfsup train``."""
    return (f"experiment=small/{method}", *network(method), *TRAINING, *OWN.get(method, ()))


def work(method: str, options: argparse.Namespace) -> None:
    """Train and judge, in this process, what of a row is not done."""
    file = file_of(method, options.out)
    if file.exists():
        return
    folder, root = file.with_suffix(""), options.root.absolute()
    ours = (*options.more, *(TINY if options.rehearse else ()))
    judge = (*JUDGE, *(TINY_JUDGE if options.rehearse else ()))
    training: dict[str, float] = {}
    if method in BASELINES:
        shape = [word for word in ours if word.startswith(("backbone", "data"))]
        words = ["checkpoint=untrained", *network(method), *images(root), *shape, f"run_dir={folder}"]
    else:
        words = [*settings(method), *images(root), *ours, f"seed={SEED}", f"run_dir={folder}", "resume=auto"]
        config = load_config(words)
        done = Clock.of(folder)
        if done is None or done["epochs"] < config.trainer.max_epochs:
            selfsup.train(config, [Clock()])
            done = Clock.of(folder)
        assert done is not None
        training = done | {"batch": config.batch_size}
        words = [f"checkpoint={folder}"]
    start = time.perf_counter()
    records = selfsup.evaluate([*words, *judge, f"seed={SEED}"], JUDGED, progress=False)
    found = {record.protocol: record for record in records if record.metric in ("top1", "rank_me")}
    result = {
        "method": method,
        **{protocol: found[protocol].value for protocol in JUDGED},
        "how": {protocol: found[protocol].how for protocol in JUDGED},
        "training": training,
        # without the folders of this machine
        "settings": [w for w in words if not w.startswith(("data.root=", "run_dir="))]
        if method in BASELINES
        else list(settings(method)),
        "evaluation_seconds": time.perf_counter() - start,
        "machine": hardware(),
        "rehearsal": options.rehearse,
    }
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1, default=str) + "\n")
    partial.rename(file)  # what was stopped leaves nothing that looks done


def results(methods: Sequence[str], out: Path) -> Iterator[dict[str, Any]]:
    """Give what was measured, here or else elsewhere, in the order of the rows."""
    for method in methods:
        file = next((file for file in (file_of(method, out), file_of(method, KEPT)) if file.exists()), None)
        if file is not None:
            yield json.loads(file.read_text())


def table(methods: Sequence[str], out: Path) -> str:
    """Write ``transformers.json`` and ``transformers.md``, and return the Markdown; what is missing is named below."""
    there = list(results(methods, out))
    rows = []
    for result in there:
        training = result["training"]
        rows.append(
            {
                "method": result["method"],
                f"kNN, k = {K}, %": f"{100 * result['knn']:.1f}",
                "linear probe, %": f"{100 * result['linear_probe']:.1f}",
                "attentive probe, %": f"{100 * result['attentive_probe']:.1f}",
                "RankMe": f"{result['diagnostics']:.1f}",
                "core-seconds": round(training["processor_seconds"]) if training else None,
                "ms a step": round(1000 * training["processor_seconds"] / training["steps"]) if training else None,
                "most MB": round(training["mb"]) if training else None,
            }
        )
    tiny = "REHEARSAL: tiny settings. " if any(result["rehearsal"] for result in there) else ""
    machines = sorted({f"{m['processor']}, torch {m['torch']}" for m in (result["machine"] for result in there)})
    protocol = (
        f"{tiny}Imagenette, 8,543 of the 9,469 training photographs (926 are held out), images of 64 px cut from 80; "
        f"{EPOCHS} epochs at batch {BATCH}, seed {SEED}, one run a row; a vision transformer of 4 blocks, 96 channels "
        "and 3 heads on patches of 8 pixels (64 tokens, 0.5 M weights), bf16, one thread. Presets "
        "experiment=small/NAME with the settings of benchmarks/transformers.py over them. The 3,925 validation "
        f"photographs, weights of the last epoch; kNN: k = {K}, temperature {TEMPERATURE}, 8,543 neighbours; linear "
        "probe: 100 epochs on fixed features; attentive probe: CAPI's form on the patch tokens of 4,000 training "
        "photographs, 10 epochs, three learning rates; both choose their settings on the held-out photographs. RankMe: "
        "of the training features. Core-seconds and milliseconds are of the processor, while other work shared it, in "
        "training alone; memory is that of the process, a step's and the photographs'. "
        f"Measured on: {'; '.join(machines) or 'nothing'}."
    )
    if not rows:
        return "Not measured yet.\n"
    text = write(out, "transformers", rows, protocol)
    missing = [method for method in methods if method not in {result["method"] for result in there}]
    return text + (f"\nNot measured yet: {', '.join(missing)}.\n" if missing else "")


def run_all(methods: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Do what is missing, each in a process of its own; return what failed."""
    failed = []
    for number, method in enumerate(methods, 1):
        if file_of(method, options.out).exists():
            continue
        print(f"{number} of {len(methods)}: {method}", flush=True)
        words = [f"--out={options.out}", f"--root={options.root}", f"--threads={options.threads}", f"--work={method}"]
        words += ["--rehearse"] * options.rehearse
        done = subprocess.run([sys.executable, __file__, *words, "--more", *options.more], check=False)
        if done.returncode:
            failed.append(f"{method} ended with code {done.returncode}")
    return failed


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with imagenette/")
    parser.add_argument("--methods", nargs="+", choices=[*BASELINES, *METHODS], default=[*BASELINES, *METHODS])
    parser.add_argument("--out", type=Path, default=Path("runs/transformers"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--more", nargs="*", default=[], metavar="SETTING", help="settings over those of every row")
    parser.add_argument("--list", action="store_true", help="print the rows with their settings and stop")
    parser.add_argument("--table", action="store_true", help="write the table of what is there and stop")
    parser.add_argument("--page", type=Path, help="also put it between the marks of this page: docs/transformers.md")
    parser.add_argument("--rehearse", action="store_true", help="two epochs of a tiny network on few images")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        torch.set_num_threads(options.threads)
        options.out.mkdir(parents=True, exist_ok=True)
        work(options.work, options)
        return
    if options.list:
        for method in options.methods:
            print("there  " if file_of(method, options.out).exists() else "missing", method)
        return
    failed = [] if options.table else run_all(options.methods, options)
    text = table(options.methods, options.out)
    print(text)
    if options.page:
        fill(options.page, {"transformers": text.strip()})
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
