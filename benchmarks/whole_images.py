"""What whole photographs give over their central squares: Imagenette at 64 px, equal images seen.

  python benchmarks/whole_images.py --root IMAGENETTE --out FOLDER [--epochs 6] [--seeds 0 1]

SimCLR with a small ResNet (backbone=resnet_tiny, width 16) is trained twice for each seed, on the same images with the
same settings but one: data.max_aspect=1, the central square of each file, and the default, all of it. The shorter side
is 64 pixels in both, and both are judged alike, on central squares: kNN (k = 20) and a linear probe on the test images.
A folder of squares is refused, as both are the same there.
A run whose results are there is not run again. The table is printed and saved as whole_images.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import selfsup
from selfsup.data import eval_batches, load_splits
from selfsup.data.encoded import MAX_ASPECT

ARMS = {"central squares": 1.0, "whole images": MAX_ASPECT}
SETTINGS = (
    *(
        "experiment=small/simclr",
        "backbone=resnet_tiny",
        "backbone.width=16",
        "data=image_folder",
        "data.image_size=64",
        "data.holdout=0.05",
    ),
    *("batch_size=128", "augment.override.scale=[0.2,1.0]", "optimizer.lr=0.003", "online.every_epochs=0"),
)
PROTOCOLS = {"knn": "kNN, k = 20", "linear_probe": "linear probe"}


def measured(root: str, out: Path, name: str, epochs: int, seed: int) -> dict[str, float]:
    """Return the accuracy of each protocol after a run of one arm, which is trained and judged where it was not yet."""
    folder = out / f"{name.replace(' ', '_')}-{seed}"
    if not (folder / "results.json").exists():
        own = [f"data.root={root}", f"data.max_aspect={ARMS[name]}", f"trainer.max_epochs={epochs}", f"seed={seed}"]
        config = selfsup.load_config([*SETTINGS, *own, f"run_dir={folder}"])
        selfsup.train(config).evaluate(list(PROTOCOLS), eval={"figures": False})
    table = selfsup.Run(folder).results
    found = {}
    for protocol in PROTOCOLS:
        rows = table[(table.protocol == protocol) & (table.metric == "top1") & (table.split == "test")]
        rows = rows[rows.k == 20] if protocol == "knn" else rows
        found[protocol] = float(rows.value.iloc[0])
    return found


def refuse_squares(root: str) -> None:
    """Stop where the images are squares: both arms would read the same pixels, and the table would say nothing."""
    config = selfsup.load_config([*SETTINGS, f"data.root={root}", "data.limit=256", "data.resident_limit_mb=0"])
    batch = next(eval_batches(load_splits(config.data).pretrain, 256))
    if batch.size is None:
        sys.exit(f"{root}: its images are squares, so whole images are their central squares; give oblong ones.")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of Imagenette: train/CLASS/, val/CLASS/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    asked = parser.parse_args(arguments)
    refuse_squares(asked.root)
    lines = [f"| images | {' | '.join(PROTOCOLS.values())} |", f"|---|{'---|' * len(PROTOCOLS)}"]
    for name in ARMS:
        runs = [measured(asked.root, asked.out, name, asked.epochs, seed) for seed in asked.seeds]
        cells = [", ".join(f"{100 * run[p]:.1f}" for run in runs) for p in PROTOCOLS]
        means = [100 * statistics.mean(run[p] for run in runs) for p in PROTOCOLS]
        values = " | ".join(f"{mean:.1f} ({cell})" for mean, cell in zip(means, cells, strict=True))
        lines.append(f"| {name} | {values} |")
    text = "\n".join(lines) + "\n"
    (asked.out / "whole_images.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
