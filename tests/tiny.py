"""Settings of runs that take a second, and images in memory."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from selfsup.data import ResidentDataset

#: A run of a few seconds: 16 images a step, four steps an epoch, a network of four channels.
TINY = [
    "data.train_size=72",
    "data.test_size=40",
    "backbone=resnet_tiny",
    "backbone.width=4",
    "batch_size=16",
    "trainer.max_epochs=2",
    "trainer.progress=false",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.log_every_steps=1",
    "online.every_epochs=1",
    "online.bank=40",
    "online.queries=8",
]


def written(name: str) -> dict[str, Any]:
    """Return what is so named (TINY, RANKS, ZERO_LAST) at the top of each method's ``tests/methods/test_METHOD.py``.

    They are read and not run, so that a method says there, in one place, what every suite needs to know of it.
    """
    found = {}
    for path in sorted((Path(__file__).parent / "methods").glob("test_*.py")):
        for line in ast.parse(path.read_text("utf-8")).body:
            if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name) and line.targets[0].id == name:
                found[path.stem.removeprefix("test_")] = ast.literal_eval(line.value)
    return found


#: What a method needs beyond TINY: ``TINY`` of its tests. One that cannot take TINY's network names another there.
TINY_METHOD = written("TINY")


def tiny(method: str) -> list[str]:
    """Return the words of a tiny run of a method."""
    own = TINY_METHOD.get(method, [])
    shared = [word for word in TINY if not (word.startswith("backbone") and network_of(method))]
    return [f"method={method}", *own, *shared]


def network_of(method: str) -> list[str]:
    """Return the words that name the network of a method whose tests ask for another than TINY's, else none."""
    return [word for word in TINY_METHOD.get(method, []) if word.startswith("backbone")]


def resident(
    images: Tensor, labels: Tensor | None = None, masks: Tensor | None = None, split: str = "train", **facts: Any
) -> ResidentDataset:
    """Images uint8 ``[N,C,H,W]`` as a dataset; ``facts`` are those of ``ImageFacts``."""
    from selfsup.data import ResidentDataset
    from selfsup.types import ImageFacts

    return ResidentDataset(images, labels, ImageFacts(split=split, channels=images.shape[1], **facts), masks=masks)
