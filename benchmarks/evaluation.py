"""What evaluation costs: a grid of probes beside a single one, and extraction beside the network alone.

    python benchmarks/evaluation.py probe       40 settings of the linear probe against one, on cached features
    python benchmarks/evaluation.py extraction  extract_features against forward passes over prepared tensors

Both print a Markdown table and save it, with a JSON file, in ``--out``: medians and ranges of the seconds over
alternating repeats, and the ratio of the medians.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import measure
import torch

from selfsup.data.resident import ResidentDataset
from selfsup.eval import FeatureSet, extract_features, linear_probe
from selfsup.eval.encoder import prepare_images
from selfsup.nn import BackboneConfig, build_backbone
from selfsup.types import ImageFacts, Normalization

EPOCHS = 3
GRID = ([1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3], [0.0, 1e-5, 1e-4, 1e-3, 1e-2])  # 8 × 5 = 40 settings
SINGLE = ([0.1], [0.0])
FEATURES = ((9_000, 128, 10), (10_000, 512, 10), (10_000, 512, 100))  # images, width, classes
STATISTICS = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: Network, side of the images and their number, which makes a pass a second or so.
NETWORKS: tuple[tuple[BackboneConfig, int, int], ...] = (
    (BackboneConfig(name="convnet", width=16, blocks=[1, 2, 2, 2]), 32, 4096),
    (BackboneConfig(name="resnet18", small_stem=False), 224, 128),
)
BATCH = 64


def made_features(count: int, width: int, classes: int, seed: int) -> FeatureSet:
    """Return features around the centres of the classes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, classes, (count,), generator=generator)
    features = torch.randn(count, width, generator=generator).mul_(4).add_(centres[labels])
    return FeatureSet(features, labels, torch.arange(count))


def probe(repeats: int) -> tuple[list[dict[str, Any]], str]:
    """Time a probe with 40 settings and one with a single setting, choice and test included."""
    rows = []
    for count, width, classes in FEATURES:
        parts = [made_features(n, width, classes, seed) for seed, n in enumerate((count, count // 10, count // 5))]

        def run(grid: tuple[list[float], list[float]], parts: list[FeatureSet] = parts) -> Callable[[], object]:
            train, holdout, test = parts
            return lambda: linear_probe(
                train,
                test,
                holdout=holdout,
                learning_rates=grid[0],
                weight_decays=grid[1],
                epochs=EPOCHS,
                device="cpu",
                progress=False,
            )

        seconds = measure.alternate({"one": run(SINGLE), "forty": run(GRID)}, repeats)
        rows.append({"features": f"{count:,} × {width}, {classes} classes"} | _compared(seconds, "one", "forty"))
    return rows, f"Linear probe on cached features, {EPOCHS} epochs in batches of 256: one setting and 40, seconds."


def extraction(repeats: int) -> tuple[list[dict[str, Any]], str]:
    """Time extraction of resident uint8 images and the network alone on batches that are already prepared."""
    rows = []
    for config, size, count in NETWORKS:
        torch.manual_seed(0)
        backbone = build_backbone(config, 3, STATISTICS).eval()
        images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
        data = ResidentDataset(images, None, ImageFacts("noise", "train", 3, size, STATISTICS))
        prepared = [
            prepare_images(batch, size, 3, STATISTICS).contiguous(memory_format=torch.channels_last)
            for batch in torch.split(images, BATCH)
        ]

        def alone(backbone: Any = backbone, prepared: list[torch.Tensor] = prepared) -> None:
            with torch.inference_mode():
                for batch in prepared:
                    backbone(batch)

        def whole(backbone: Any = backbone, data: ResidentDataset = data) -> None:
            extract_features(backbone, data, batch_size=BATCH, progress=False)

        seconds = measure.alternate({"network alone": alone, "extraction": whole}, repeats)
        row = {"network": config.name, "images": f"{count:,} of {size} px"}
        rows.append(row | _compared(seconds, "network alone", "extraction"))
        rows[-1]["share"] = f"{100 / rows[-1]['ratio']:.0f} %"
    return rows, (
        f"Features of resident uint8 images in batches of {BATCH}, and the same forward passes over batches that were "
        "scaled and normalised before, seconds. The share is that of the network in the extraction."
    )


def _compared(seconds: dict[str, list[float]], base: str, other: str) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name in (base, other):
        median, low, high = measure.summary(seconds[name])
        told[name] = f"{median:.3f} ({low:.3f} to {high:.3f})"
    return told | {"ratio": measure.summary(seconds[other])[0] / measure.summary(seconds[base])[0]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("probe", "extraction"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="benchmarks/results", help="folder for the JSON and the Markdown file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows, protocol = {"probe": probe, "extraction": extraction}[arguments.what](arguments.repeats)
    print(
        measure.write(arguments.out, f"evaluation_{arguments.what}", rows, f"{protocol} {arguments.repeats} repeats.")
    )


if __name__ == "__main__":
    main()
