"""lightly's methods as its benchmarks for CIFAR-10 and Imagenette set them, on a network of ours: for tables beside it.

lightly's losses, heads and transforms are imported from an installed lightly (1.6); nothing of it is here. Settings are
those of its documentation's ``cifar10_benchmark.py`` and ``imagenette_benchmark.py``: SGD with momentum at 0.06 for
batch 128, decay 5e-4 (SwAV: Adam at 1e-3), a cosine an epoch, no queue and no local crops, no blur up to 64 pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightly.data import LightlyDataset
from lightly.data.multi_view_collate import MultiViewCollate
from lightly.loss import BarlowTwinsLoss, DINOLoss, NegativeCosineSimilarity, NTXentLoss, SwaVLoss, VICRegLoss
from lightly.models import utils
from lightly.models.modules import heads
from lightly.transforms import DINOTransform, SimCLRTransform, SwaVTransform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

KEPT = 0.99  # of a momentum encoder, in every one of its benchmarks


class Rival(pl.LightningModule):
    """A method: its heads on the network, and a loss of the views.

    Args:
        backbone: Gives features ``[B,D]``.
        batch_size: Images a step; the learning rate follows it.
        epochs: Of the cosine.
    """

    def __init__(self, backbone: nn.Module, batch_size: int, epochs: int) -> None:
        super().__init__()
        self.backbone, self.epochs, self.rate = backbone, epochs, batch_size / 128
        self.build(backbone.dim)

    def build(self, dim: int) -> None:
        """Make the heads and the criterion for features of a width."""
        raise NotImplementedError

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        """Return the loss of the views."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch of lightly's loader."""
        return self.loss(batch[0])

    def learnt(self) -> list[nn.Parameter]:
        """Return what the optimiser moves."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        """Return the optimiser and the schedule."""
        optimizer = torch.optim.SGD(self.learnt(), 0.06 * self.rate, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)]

    def follow(self, *names: str) -> None:
        """Give modules a copy that follows them: ``head`` becomes ``head_momentum`` besides."""
        self.followed = names
        for name in names:
            module = copy.deepcopy(getattr(self, name))
            utils.deactivate_requires_grad(module)
            setattr(self, f"{name}_momentum", module)

    def move(self) -> None:
        """Let the copies take a step."""
        for name in self.followed:
            utils.update_momentum(getattr(self, name), getattr(self, f"{name}_momentum"), m=KEPT)


class SimCLR(Rival):
    """NT-Xent of two views."""

    def build(self, dim: int) -> None:
        self.head, self.criterion = heads.SimCLRProjectionHead(dim, dim, 128), NTXentLoss()

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        return self.criterion(*(self.head(self.backbone(view)) for view in views))


class Example(SimCLR):
    """SimCLR as lightly's example for CIFAR-10 sets it (examples/pytorch_lightning/simclr.py).

    Batch 256, a head of 2048-2048, SGD without momentum at 0.06, no schedule; crops from 0.08, colour strength 1. Left
    out is its blur, which costs time and hurts at this size.
    """

    BATCH = 256

    def build(self, dim: int) -> None:
        self.head, self.criterion = heads.SimCLRProjectionHead(dim, 2048, 2048), NTXentLoss(temperature=0.5)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.06)


class MoCo(Rival):
    """MoCo v2, symmetric, with a bank of 4,096 keys."""

    def build(self, dim: int) -> None:
        self.head = heads.MoCoProjectionHead(dim, dim, 128)
        self.follow("backbone", "head")
        self.criterion = NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128))

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        self.move()
        return (self.one_way(*views) + self.one_way(*reversed(views))) / 2

    def one_way(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the loss with one view as the query."""
        with torch.no_grad():
            key, order = utils.batch_shuffle(key)
            keys = utils.batch_unshuffle(self.head_momentum(self.backbone_momentum(key)), order)
        return self.criterion(self.head(self.backbone(query)), keys)


class SwAV(Rival):
    """SwAV with 512 prototypes."""

    def build(self, dim: int) -> None:
        self.head, self.prototypes = heads.SwaVProjectionHead(dim, dim, 128), heads.SwaVPrototypes(128, 512)
        self.criterion = SwaVLoss()

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        self.prototypes.normalize()
        scores = [self.prototypes(nn.functional.normalize(self.head(self.backbone(view)), dim=1)) for view in views]
        return self.criterion(scores, [])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.learnt(), 1e-3 * self.rate, weight_decay=1e-6)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)]


class BYOL(Rival):
    """BYOL, symmetric."""

    def build(self, dim: int) -> None:
        self.head = heads.BYOLProjectionHead(dim, 1024, 256)
        self.follow("backbone", "head")
        self.predictor, self.criterion = heads.BYOLPredictionHead(256, 1024, 256), NegativeCosineSimilarity()

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        self.move()
        predicted = [self.predictor(self.head(self.backbone(view))) for view in views]
        with torch.no_grad():
            targets = [self.head_momentum(self.backbone_momentum(view)) for view in views]
        return (self.criterion(predicted[0], targets[1]) + self.criterion(predicted[1], targets[0])) / 2


class BarlowTwins(SimCLR):
    """Barlow Twins; a head of two layers of 2,048."""

    def build(self, dim: int) -> None:
        first = (dim, 2048, nn.BatchNorm1d(2048), nn.ReLU(inplace=True))
        self.head = heads.ProjectionHead([first, (2048, 2048, None, None)])
        self.criterion = self.criterion_of()

    def criterion_of(self) -> nn.Module:
        """Return the loss of two embeddings."""
        return BarlowTwinsLoss()


class VICReg(BarlowTwins):
    """VICReg, with the head of Barlow Twins."""

    def criterion_of(self) -> nn.Module:
        return VICRegLoss()


class DINO(Rival):
    """DINO with 2,048 outputs; a head of two layers before the last."""

    def build(self, dim: int) -> None:
        self.head, head_momentum = self.made(dim), self.made(dim)
        self.follow("backbone")
        self.followed = ("backbone", "head")
        utils.deactivate_requires_grad(head_momentum)
        self.head_momentum = head_momentum  # drawn apart, as in its benchmark
        self.criterion = DINOLoss(output_dim=2048)

    def made(self, dim: int) -> nn.Module:
        """Return a head."""
        head = heads.DINOProjectionHead(dim, 2048, 256, 2048, batch_norm=True)
        first = (dim, 2048, nn.BatchNorm1d(2048), nn.GELU())
        head.layers = heads.ProjectionHead([first, (2048, 256, None, None)]).layers
        return head

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        self.move()
        with torch.no_grad():
            targets = [self.head_momentum(self.backbone_momentum(view)) for view in views]
        return self.criterion(targets, [self.head(self.backbone(view)) for view in views], epoch=self.current_epoch)


RIVALS: dict[str, type[Rival]] = {
    "simclr": SimCLR,
    "moco": MoCo,
    "swav": SwAV,
    "byol": BYOL,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    "dino": DINO,
}


def transform_for(name: str, size: int, normalize: dict[str, list[float]]) -> Any:
    """Return the transform of a method for crops of a size, two of them."""
    blurred = size > 64
    if name == "example":
        return SimCLRTransform(size, gaussian_blur=0.0, normalize=normalize)
    if name == "swav":
        return SwaVTransform((size,), (2,), (0.14,), (1.0,), gaussian_blur=0.5 * blurred, normalize=normalize)
    if name == "dino":
        blur = (1.0, 0.1, 0.5) if blurred else (0.0, 0.0, 0.0)
        return DINOTransform(size, n_local_views=0, gaussian_blur=blur, normalize=normalize)
    return SimCLRTransform(size, cj_strength=0.5, gaussian_blur=0.5 * blurred, normalize=normalize)


def loader(
    images: Path | Dataset[Any], transform: Callable[[Any], Any], batch_size: int, workers: int
) -> Iterable[Any]:
    """Return lightly's loader of a folder with a folder a class, or of a dataset of pictures."""
    data = (
        LightlyDataset(str(images), transform=transform)
        if isinstance(images, Path)
        else LightlyDataset.from_torch_dataset(images, transform=transform)
    )
    return DataLoader(
        data, batch_size, shuffle=True, drop_last=True, num_workers=workers, collate_fn=MultiViewCollate()
    )
