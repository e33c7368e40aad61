"""What it costs a class to have been rare in the training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.errors import UserError
from selfsup.eval.features import labels_of
from selfsup.eval.record import FRACTION, Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject

FEWEST = 5  # images of a class that its centre is the mean of


@protocol("minorities", needs=("labels",), by_name=True)
def evaluate(subject: Subject, settings: None) -> Iterator[Record]:
    """Whether rare classes are merged with another class, and lose images to it, more than frequent ones.

    Representation and allocation harms of contrastive learning (Maity et al., arXiv:2310.01583), measured here as
    inferred from the abstract. Of every class, as often as the training images have it, the class whose centre is most
    like its own is its confusable one. Features are centred and L2-normalised, and centres are means of as many
    training images of each class as the rarest has, drawn with the seed, so that a classifier has no reason of its own
    to prefer a frequent class.

    - ``allocation_gap``: share of scored images nearer to the centre of their own class than to that of its
      confusable one, mean of the frequent half of the classes less that of the rare half. Above 0 rare classes lose.
    - ``collapse_gap``: cosine of a class's centre with its confusable one's, mean of the rare half less that of the
      frequent half. Above 0 rare classes are merged with others.

    ``classes`` holds both for every class. The class in the middle of an odd number is in neither half. To see what
    the rarity did, and not what is hard about these classes, compare with a run on data that has them as often as
    others. Without a difference in the numbers of images there is nothing to measure.
    """
    features = subject.features
    split, scored = features.scored
    train = features.train
    known, asked = labels_of(subject.splits.train), scored.labels
    if asked is None:
        raise UserError("minorities: the scored images have no labels.")
    seen = subject.splits.pretrain.labels
    counted = known if seen is None or not bool((seen >= 0).any()) else seen[seen >= 0]
    assert train.labels is not None
    classes = torch.tensor(sorted({*train.labels[train.labels >= 0].tolist()} & {*asked[asked >= 0].tolist()}))
    counts = torch.tensor([int((counted == label).sum()) for label in classes.tolist()])
    if len(classes) < 2 or counts.min() == counts.max():
        raise UserError(
            "minorities: all classes have the same number of training images; it needs data where some are rare."
        )
    fewest = min(int((train.labels == label).sum()) for label in classes.tolist())
    if fewest < FEWEST:
        raise UserError(f"minorities: a class has {fewest} training images, too few for a centre; {FEWEST} are needed.")
    collapse, kept, confusable = harms(
        (train.features, train.labels), (scored.features, asked), classes, fewest, subject.seed
    )
    order, half = counts.argsort(stable=True), len(classes) // 2
    rare, frequent = order[:half], order[-half:]
    table = {
        str(int(classes[i])): {
            "count": int(counts[i]),
            "confusable": int(classes[confusable[i]]),
            "collapse": collapse[i].item(),
            "kept": kept[i].item(),
        }
        for i in range(len(classes))
    }
    how: dict[str, Any] = {"centre_images": fewest, **features.how}
    gap = (kept[frequent].mean() - kept[rare].mean()).item()
    own = {"classes": table}
    yield Record(split=split, metric="allocation_gap", value=gap, unit=FRACTION, how=how, found=own)
    gap = (collapse[rare].mean() - collapse[frequent].mean()).item()
    yield Record(split=split, metric="collapse_gap", value=gap, how=how)


def harms(
    train: tuple[Tensor, Tensor], scored: tuple[Tensor, Tensor], classes: Tensor, count: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each class how alike the nearest other centre is, and how many of its images it keeps against that.

    Args:
        train, scored: Features ``[N,D]`` and labels ``[N]``.
        classes: int64 ``[K]``, labels that both have.
        count: Training images that each centre is the mean of.
        seed: Of their draw.

    Returns:
        The cosine ``[K]``, the share kept ``[K]``, and which class, int64 ``[K]``, is the confusable one.
    """
    mean = train[0].double().mean(0)
    bank, asked = (F.normalize(part[0].double() - mean, dim=1) for part in (train, scored))
    generator = torch.Generator().manual_seed(seed)
    centres = []
    for label in classes.tolist():
        own = (train[1] == label).nonzero().flatten()
        centres.append(bank[own[torch.randperm(len(own), generator=generator)[:count]]].mean(0))
    centre = F.normalize(torch.stack(centres), dim=1)
    cosines = (centre @ centre.T).fill_diagonal_(-torch.inf)
    alike, confusable = cosines.max(1)
    kept = []
    for place, label in enumerate(classes.tolist()):
        own = asked[scored[1] == label]
        kept.append((own @ centre[place] > own @ centre[confusable[place]]).double().mean())
    return alike, torch.stack(kept), confusable
