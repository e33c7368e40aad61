"""Forward and backward of small vision transformers on a CPU, with torch's fused attention and with timm's plain form.

python benchmarks/attention.py      processor milliseconds an image, one thread, in turn
"""

from __future__ import annotations

import time

import timm
import torch
from timm.layers import set_fused_attn

from selfsup.tables import markdown_table

SHAPES = ((96, 4), (192, 4), (192, 6))  # channels, blocks
IMAGES, ROUNDS = 64, 3


def milliseconds(fused: bool, width: int, depth: int, bf16: bool) -> float:
    """Return the least processor milliseconds an image of a forward and a backward pass."""
    set_fused_attn(fused)  # read where a network is built
    shape = {"patch_size": 8, "embed_dim": width, "depth": depth, "num_heads": 3, "img_size": 64, "num_classes": 0}
    network = timm.create_model("vit_small_patch16_224", **shape)
    images, best = torch.randn(IMAGES, 3, 64, 64), float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            network(images).float().sum().backward()
        best = min(best, time.process_time() - start)
    return 1000 * best / IMAGES


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    rows = [
        [f"{width} channels, {depth} blocks", "bf16" if bf16 else "float32"]
        + [f"{milliseconds(fused, width, depth, bf16):.1f}" for fused in (True, False)]
        for width, depth in SHAPES
        for bf16 in (True, False)
    ]
    print(markdown_table(["transformer, 64 tokens", "precision", "fused", "plain"], rows))


if __name__ == "__main__":
    main()
