"""What every data source gives: uint8 images, labels or none, and an index that never changes."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from selfsup.data.form import Form
from selfsup.data.found import Found
from selfsup.data.membership import Membership
from selfsup.data.targets import Targets
from selfsup.settings import Section, Sides, TextOrList, setting
from selfsup.types import ImageFacts, Normalization, Size, as_size


@dataclass
class DataConfig(Section):
    """Settings that every source has; a source's own dataclass adds to them.

    Attributes:
        name: The source, as registered.
        root: Folder with the data; None looks where the source's documentation says. A folder of images may be a
            list of folders.
        download: Fetch missing data over the network. Off by default: training machines are often offline.
        image_size: Side in pixels of the images that evaluation sees and the default side of the training views;
            ``[height,width]`` for rectangles.
        limit: Use only this many training images (a subset drawn with ``subset_seed``); None uses all.
        holdout: Fraction of the training split that is set aside for the choices the evaluator makes. It is taken
            before ``limit`` and is never trained on. With ``membership=image`` it is the chance of each image.
        membership: What decides which part an image of one's own files is of: ``image``, its name or content and
            the seed, so that adding or removing images moves no other; ``position``, a permutation of their number, as
            runs were drawn that saved no such setting. Sources of fixed content always go by position.
        subset_seed: Seed of the hold-out and of ``limit``. Apart from ``seed``, so that runs with different seeds
            see the same images.
        workers: Worker processes that decode images when the source is streamed from disk. None is one for each core
            that a training process has, at most 16; 0 reads in the training process.
        resident_limit_mb: A source whose decoded images take at most this much memory is kept as one tensor.
        resident_on_device: Keep such a source on the GPU that trains when a quarter of its free memory holds it.
        labelled: false reads no labels, whatever the source has; true asks for them. None takes them where there are
            some.
        mean, std: Per-channel statistics of images scaled to [0, 1], used to normalise views and evaluation images.
    """

    section: ClassVar[str] = "data"
    #: Whether it is a real dataset with classes that is known by its name alone and evaluated in minutes.
    small: ClassVar[bool] = False

    name: str = "???"
    root: Annotated[Any, TextOrList] = None
    download: bool = False
    image_size: Sides = setting(32, least=1)
    limit: int | None = setting(None, least=1)
    holdout: float = setting(0.1, least=0, below=1)
    membership: str = setting("image", choices=("image", "position"))
    subset_seed: int = 0
    workers: int | None = setting(None, least=0)
    resident_limit_mb: int = setting(2048, least=0)
    resident_on_device: bool = True
    labelled: bool | None = None
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])

    def facts(self, split: str, channels: int = 3, classes: Iterable[str] | None = None) -> ImageFacts:
        """Return what the settings say of the images of a split."""
        statistics = Normalization(tuple(self.mean), tuple(self.std))
        names = None if classes is None else tuple(classes)
        return ImageFacts(self.name, split, channels, as_size(self.image_size), statistics, names)


class Read(NamedTuple):
    """Images that were read; ``image`` and ``size`` as ``selfsup.ragged.Images`` has them.

    Attributes:
        image: uint8 ``[n,C,H,W]``, or ``[C,P]`` where they are no squares of one size.
        decoded: bool ``[n]``: which of them could be decoded; the others are black.
        size: None, or int64 ``[n,2]``: height and width of each.
    """

    image: Tensor
    decoded: Tensor
    size: Tensor | None = None


class ImageDataset(ABC):
    """A split of a source, or a part of one.

    Attributes:
        facts: What is known of the images; its parts can be read from the dataset itself too (``dataset.channels``).
        labels: int64 ``[N]`` on the CPU, or None. A missing label is -1.
        targets: Several labels or real values an image, in place of ``labels``, or None. They are those of the whole
            source split; ``targets.of(dataset.index)`` are those of this part.
        index: int64 ``[N]`` on the CPU: the stable position of each image in its source split.
        keys: int64 ``[N]`` on the CPU: which image each is, whatever lies beside it (``selfsup.data.membership``); None
            for a source of fixed content, whose images are known by their index.
        form: What files or shards are read as; None where the images come from elsewhere.
        resident: Whether the images are in memory, so that reading needs no worker processes.
        cached: Whether they are read from a cache of pixels, for which one thread is enough.
        reading: int64 ``[1]``, where a worker says which image of its source split it decodes, should it crash.
    """

    facts: ImageFacts
    labels: Tensor | None
    index: Tensor
    keys: Tensor | None = None
    targets: Targets | None = None
    form: Form | None = None
    resident: bool = True
    cached: bool = False
    reading: Tensor | None = None

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def split(self) -> str:
        return self.facts.split

    @property
    def channels(self) -> int:
        return self.facts.channels

    @property
    def image_size(self) -> Size:
        return self.facts.image_size

    @property
    def normalization(self) -> Normalization:
        return self.facts.normalization

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.facts.classes

    def __len__(self) -> int:
        return len(self.index)

    @abstractmethod
    def read(self, positions: Tensor) -> Tensor:
        """Return the images at ``positions`` (int64 ``[n]``, positions in this part) as uint8 ``[n,C,H,W]``.

        Where they are read from files or shards, it is the central square of each, or of a rectangular
        ``image_size`` the central part of its aspect.
        """

    def read_masks(self, positions: Tensor) -> Tensor | None:
        """Return masks uint8 ``[n,H,W]`` of what ``read`` returns; None when there are none.

        They hold 0 on the background, 1 + class on an object, and 255 where nothing is known.
        """
        return None

    def read_decodable(self, positions: Tensor) -> Read:
        """Return the whole images at ``positions``, and which of them could be decoded."""
        return Read(self.read(positions), torch.ones(len(positions), dtype=torch.bool))

    def note(self, row: int) -> None:
        """Say which image of the source split is decoded now."""
        if self.reading is not None:
            self.reading[0] = row

    def report_undecodable(self, positions: Tensor) -> None:  # noqa: B027 most sources have nothing to report
        """Log and count the images that a reader, perhaps in another process, could not decode.

        Raises:
            UserError: There are more than the source allows.
        """

    def blocks(self) -> tuple[Tensor, int] | None:
        """Return how training must shuffle so that the disk reads in long runs; None where any order will do.

        Returns:
            int64 ``[N]``, the block of storage that each image lies in, and how many images are shuffled with each
            other: whole blocks in random order, up to that number.
        """
        return None

    def without_labels(self) -> Self:
        """Return the same images without their labels; masks and the names of what they show stay."""
        part = copy.copy(self)
        part.labels = part.targets = None
        if self.read_masks(torch.arange(0)) is None:
            part.facts = dataclasses.replace(self.facts, classes=None)
        return part

    def undecodable(self) -> Counter[str]:
        """Return how many images of the split have turned out to be undecodable so far, by reason."""
        return Counter()

    def first(self, order: Tensor, count: int | None = None) -> ImageDataset:
        """Return the part of the first ``count`` positions of an order, ascending; None is all of them.

        Where images are kept in memory it holds those that can be decoded, and is decoded when this returns.
        """
        return self.subset(order[:count].sort().values)

    @abstractmethod
    def subset(self, positions: Tensor) -> ImageDataset:
        """Return the part at ``positions``; ``index`` goes on naming positions in the source split."""


@dataclass(frozen=True)
class Splits:
    """The parts of a source.

    Attributes:
        pretrain: What self-supervised training reads; equal to ``train`` except where a source has more, unlabelled.
        train: Labelled images that probes and the kNN bank use.
        holdout: Images of the training split set aside for choices.
        test: Touched once, after every choice. None when the source has none.
        found: What the source found and left out; None for those that are complete or not there.
        membership: Which image is of which part; None for parts that were put together by hand.
    """

    pretrain: ImageDataset
    train: ImageDataset
    holdout: ImageDataset
    test: ImageDataset | None
    found: Found | None = None
    membership: Membership | None = None


@dataclass(frozen=True)
class SourceSplits:
    """What a registered source returns, before the hold-out and ``limit`` are taken.

    Attributes:
        train: The training split.
        test: None when the source has none.
        pretrain: The images for self-supervised training where there are more than in ``train``. It begins with the
            images of ``train``, in the same order. None is ``train``.
        holdout: The images for choices, where the source has a split for them; None takes some of ``train``.
        found: What the source found and left out; None for those that are complete or not there.
    """

    train: ImageDataset
    test: ImageDataset | None
    pretrain: ImageDataset | None = None
    holdout: ImageDataset | None = None
    found: Found | None = None
