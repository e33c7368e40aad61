"""What an objective is: it sees the embeddings of a batch, and gives the loss in place of the method's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from selfsup.distributed import world
from selfsup.functional import queue_pairs, view_pairs
from selfsup.functional.pairs import Pairs
from selfsup.settings import Section
from selfsup.types import StepOutput


@dataclass
class ObjectiveConfig(Section):
    """Settings that every objective has; an objective's own dataclass adds to them.

    Attributes:
        name: The objective, as registered; ``none`` is the method's own loss.
    """

    section: ClassVar[str] = "objective"

    name: str = "none"


@dataclass(frozen=True)
class Embeddings:
    """What a method lets an objective see.

    Attributes:
        views: Embeddings ``[V,N,D]`` of this rank's images, of any length. With a queue they are query and key.
        labels: int64 ``[N]``, -1 where there is none; images of one label are positives. None where the method does
            not learn from labels.
        index: int64 ``[N]``, the stable index of each image.
        queue: Keys of earlier images ``[K,D]``, of length 1, where the method contrasts with a queue.
        mixed: Further negatives of each query alone ``[N,S,D]``, of length 1.
    """

    views: Tensor
    index: Tensor
    labels: Tensor | None = None
    queue: Tensor | None = None
    mixed: Tensor | None = None

    def pairs(self, *, first_only: bool = False, across: bool = False) -> Pairs:
        """Return anchors beside candidates: the views of all ranks' images, or the queries, their keys and the queue.

        Args:
            first_only, across: Of views, as :func:`selfsup.functional.view_pairs` takes them.
        """
        if self.queue is not None:
            return queue_pairs(self.views[0], self.views[1], self.queue, self.mixed)
        return view_pairs(self.views, self.labels, first_only=first_only, across=across, group=world())


class Objective(nn.Module, ABC):
    """Base of the objectives. A subclass writes ``__init__``, which takes its config, and ``forward``.

    Args:
        index: int64 ``[N]``, the stable index of each training image, for what keeps something of each; None where the
            images are not known.
    """

    #: Fewest and most views of an image; None is any number. With a queue there are two, query and key.
    view_count: tuple[int, int | None] = (2, None)
    #: Whether it reads ``Embeddings.labels``, of methods too that do not learn from labels by themselves.
    needs_labels = False
    #: Whether it keeps something of each image.
    needs_index = False

    def __init__(self, config: ObjectiveConfig, index: Tensor | None = None) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, embeddings: Embeddings) -> StepOutput:
        """Return the loss, averaged over this rank's anchors, and scalars to log."""
