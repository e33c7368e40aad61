"""What the runs of standard.py are, by budget and kind of data."""

from __future__ import annotations

from dataclasses import dataclass

GPU = ("trainer.accelerator=gpu", "trainer.precision=bf16-mixed", "trainer.compile=true")
CORES = ("trainer.accelerator=cpu", "trainer.precision=bf16-mixed", "backbone=resnet_narrow")
CIFAR = ("data=image_folder", "data.image_size=32")
PHOTOGRAPHS = ("data=imagenette", "data.source_size=160")


@dataclass(frozen=True)
class Setup:
    """A kind of data within a budget.

    Attributes:
        settings: Over the presets.
        words: What it is, for the table.
        published: lightly's documentation, 200 epochs: kNN in percent (k = 200 on CIFAR-10, 20 on Imagenette), the
            highest of all epochs, and minutes.
    """

    settings: tuple[str, ...]
    words: str
    published: str = ""


_CIFAR = "CIFAR-10, JPEG copy, all 50,000 training images; "
_PHOTOGRAPHS = "Imagenette, all 9,469 training photographs, 160 px; "
_SQUARES = ". Training sees whole photographs; the test, their central squares of 160 pixels, at the side of the crops"
_FAST = "; bf16, channels last, compiled, images resident on the GPU"
SETUPS = {
    "cores": {
        "cifar10": Setup(
            (*CIFAR, *CORES, "trainer.max_epochs=20"),
            f"{_CIFAR}20 epochs at batch 128; ResNet-18 with the small stem at a quarter of its width, 32 px, bf16",
        ),
        "imagenette": Setup(
            (*PHOTOGRAPHS, "data.image_size=64", *CORES, "backbone.stem_stride=2", "trainer.max_epochs=60"),
            f"{_PHOTOGRAPHS}60 epochs at batch 128; ResNet-18 at a quarter of its width whose small stem halves the "
            f"image, crops of 64 px, bf16{_SQUARES}",
        ),
    },
    "gpu": {
        "cifar10": Setup(
            (*CIFAR, *GPU),
            f"{_CIFAR}200 epochs at batch 128; ResNet-18 with the small stem, 32 px{_FAST}",
            "simclr 84.7 (98), moco 83.8 (129), byol 86.9 (122), simsiam 81.9 (97), barlow_twins 84.2 (376), "
            "nnclr 83.4 (102), swav 81.2 (100), dino 84.0 (120)",
        ),
        "imagenette": Setup(
            (*PHOTOGRAPHS, "data.image_size=128", *GPU, "backbone.small_stem=false", "batch_size=256"),
            f"{_PHOTOGRAPHS}200 epochs at batch 256; ResNet-18, crops of 128 px{_FAST}{_SQUARES}",
            "simclr 83.5, moco 78.6, byol 70.5, simsiam 75.2, barlow_twins 65.1, nnclr 80.9, swav 86.1, dino 87.3, "
            "vicreg 76.3",
        ),
    },
}
