"""Settings of runs that take a second, and images in memory."""

from __future__ import annotations

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

#: What a method needs beyond TINY.
TINY_METHOD = {
    "barlow_twins": ["method.hidden_dim=16", "method.output_dim=8"],
    "vicreg": ["method.hidden_dim=16", "method.output_dim=8"],
    "wmse": ["method.hidden_dim=16", "method.output_dim=4", "method.subbatch_size=8", "method.iterations=2"],
    "moco": ["method.queue_size=48", "method.bn_groups=4"],
    "moco_v1": ["method.queue_size=48", "method.bn_groups=4"],
    "moco_v3": ["method.hidden_dim=16", "method.output_dim=8"],
    "nnclr": ["method.queue_size=48", "method.hidden_dim=16", "method.output_dim=8", "method.predictor_dim=16"],
    "densecl": ["method.queue_size=48", "method.bn_groups=4", "method.hidden_dim=16", "method.output_dim=8"],
    "pixpro": ["method.hidden_dim=16", "method.output_dim=8"],
    "pixcontrast": ["method.hidden_dim=16", "method.output_dim=8"],
    "swav": [
        "augment.counts=[2,2]",
        "method.prototypes=24",
        "method.hidden_dim=16",
        "method.output_dim=8",
        "method.queue_size=40",
        "method.queue_start_epoch=0",
    ],
    "dino": [
        "augment.counts=[2,2]",
        "method.output_dim=24",
        "method.hidden_dim=16",
        "method.bottleneck_dim=8",
    ],
    "byol": ["method.hidden_dim=16", "method.output_dim=8"],
    "simsiam": ["method.hidden_dim=16", "method.output_dim=12", "method.predictor_dim=6"],
}


def resident(
    images: Tensor, labels: Tensor | None = None, masks: Tensor | None = None, split: str = "train", **facts: Any
) -> ResidentDataset:
    """Images uint8 ``[N,C,H,W]`` as a dataset; ``facts`` are those of ``ImageFacts``."""
    from selfsup.data import ResidentDataset
    from selfsup.types import ImageFacts

    return ResidentDataset(images, labels, ImageFacts(split=split, channels=images.shape[1], **facts), masks=masks)
