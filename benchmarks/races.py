"""What speedrun.py races for: images, preset, targets, and how a copy of the weights is judged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from setups import CIFAR, GPU


@dataclass(frozen=True)
class Race:
    """A kind of data with our preset for it.

    Attributes:
        preset: Our settings; network and images are the rivals' too.
        targets: Accuracies on held-out training images.
        every_images: Images between two copies of the weights.
        bank, queries: Most training and most held-out images of a look at a copy.
        k, temperature: Of kNN.
        seconds: Most seconds of training.
        folder: Of the images below ``--root``; None leaves that to the source.
        words: What the images are.
    """

    preset: tuple[str, ...]
    targets: tuple[float, ...]
    every_images: int
    bank: int
    queries: int
    k: int
    temperature: float
    seconds: float
    folder: str | None
    words: str

    def settings(self, root: Path | None) -> list[str]:
        """Return the settings of our training, with the images below ``root``."""
        place = [] if root is None or self.folder is None else [f"data.root={root.absolute() / self.folder}"]
        return [*self.preset, *place]


_CIFAR = {"every_images": 45_000, "queries": 5000, "temperature": 0.1, "folder": "cifar10"}
_COPY = "CIFAR-10, JPEG copy, nine tenths of the 50,000 training images"
RACES = {
    "fashion_mnist": Race(
        ("experiment=fashion_mnist_fast",),
        targets=(0.78,),
        every_images=5000,
        bank=5000,
        queries=2000,
        k=20,
        temperature=0.07,
        seconds=240.0,
        folder=None,
        words="10,000 training images of Fashion-MNIST",
    ),
    "cifar10": Race(
        ("experiment=cifar10_fast", *CIFAR),
        targets=(0.55, 0.6, 0.65),
        bank=20_000,
        k=20,
        seconds=3600.0,
        words=f"{_COPY}; the preset's network",
        **_CIFAR,  # type: ignore[arg-type]
    ),
    # the same images with a ResNet-18, for the 90 % that published runs take an hour and a half for
    "cifar10_gpu": Race(
        ("experiment=cifar10/simclr", *CIFAR, *GPU, "data.holdout=0.1", "batch_size=512", "trainer.max_epochs=100"),
        targets=(0.8, 0.9),
        bank=50_000,
        k=200,
        seconds=420.0,
        words=f"{_COPY}; ResNet-18, batch 512",
        **_CIFAR,  # type: ignore[arg-type]
    ),
}
#: A rehearsal's settings, over everything else.
TINY = (
    *("backbone=convnet", "backbone.width=4", "backbone.blocks=[1,1]", "trainer.max_epochs=2", "batch_size=32"),
    *("trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.compile=false", "data.limit=null"),
)
TINY_IMAGES = 60  # between two copies
