"""Two SimCLR views of a batch: ours against Kornia's AugmentationSequential, the same operations, alternating.

    python benchmarks/views.py [--threads 2]

Prints a Markdown table: the median and the range of images a second over the repeats, and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import kornia.augmentation as K
import torch
from torch import Tensor

from selfsup.augment import AugmentConfig, build_views
from selfsup.types import Normalization

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
CASES = ((32, 256), (96, 64), (224, 16))  # side, batch; the batch shrinks so that a repeat takes about as long


def ours(size: int) -> Callable[[Tensor], object]:
    """Return our generator of two views."""
    values: dict[str, Any] = {"scale": [0.2, 1.0], "interpolation": "bilinear", "jitter_p": 0.8, "gray_p": 0.2}
    config = AugmentConfig(
        recipe="simclr", small=False, override={**values, **JITTER, "blur_p": 0.5 if size > 64 else 0.0}
    )
    return build_views(config, size, Normalization(MEAN, STD))


def kornia(size: int) -> Callable[[Tensor], object]:
    """Return the same two views from Kornia."""
    steps = [
        K.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(*JITTER.values(), p=0.8),
        K.RandomGrayscale(p=0.2),
    ]
    if size > 64:
        side = size // 10 + (size // 10 + 1) % 2
        steps.append(K.RandomGaussianBlur((side, side), (0.1, 2.0), p=0.5))
    sequence = K.AugmentationSequential(*steps, K.Normalize(torch.tensor(MEAN), torch.tensor(STD)), data_keys=["input"])
    return lambda images: [sequence(images.float() / 255) for _ in range(2)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, torch {torch.__version__}, {arguments.repeats} repeats, two views an image\n")
    print("| side | ours, images/s | Kornia, images/s | ratio |\n|---|---|---|---|")
    for size, batch in CASES:
        images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
        rivals = {"ours": ours(size), "kornia": kornia(size)}
        rates: dict[str, list[float]] = {name: [] for name in rivals}
        for repeat in range(arguments.repeats + 2):
            for name, views in rivals.items():
                start = time.perf_counter()
                views(images)
                if repeat >= 2:  # the first two warm up
                    rates[name].append(batch / (time.perf_counter() - start))
        median = {name: statistics.median(values) for name, values in rates.items()}
        cells = [f"{median[n]:.0f} ({min(rates[n]):.0f} to {max(rates[n]):.0f})" for n in ("ours", "kornia")]
        print(f"| {size} | {cells[0]} | {cells[1]} | {median['ours'] / median['kornia']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
