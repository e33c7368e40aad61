"""Which checkpoint of a run each measure would choose, and what that choice costs in accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy import stats

from selfsup.eval.record import Record

#: Measures that need no labels, and what is better the larger it is.
WORTH: dict[str, Callable[[float], float]] = {
    "rank_me": lambda value: value,
    "lidar": lambda value: value,
    "alpha_req": lambda value: -abs(value - 1),  # at 1 a spectrum is neither collapsed nor noise
}
ACCURACY = "top1"


@dataclass(frozen=True)
class Choice:
    """What a measure would choose.

    Attributes:
        metric: Its name.
        epoch: Of the checkpoint at which it is best; of equal ones the earliest.
        accuracy: kNN accuracy of that checkpoint, or None without labels.
        lost: By how much the best checkpoint is better.
        agreement: Spearman's rank correlation of the measure's worth with the accuracy over the checkpoints; None where
            there are fewer than three, or one of both does not vary.
    """

    metric: str
    epoch: int
    accuracy: float | None
    lost: float | None
    agreement: float | None


def by_epoch(records: Sequence[Record]) -> dict[int, dict[str, float]]:
    """Return the values of a run's ``trajectory`` records by epoch, in order, and metric; the last one counts."""
    found: dict[int, dict[str, float]] = {}
    for record in records:
        epoch = record.get("epoch")
        if record.protocol == "trajectory" and isinstance(epoch, int) and record.get("at") is None:
            found.setdefault(epoch, {})[record.metric] = record.value
    return dict(sorted(found.items()))


def choices(values: dict[int, dict[str, float]]) -> list[Choice]:
    """Return what each measure would choose of the checkpoints, and first of all what the accuracy would, if there is.

    Args:
        values: As :func:`by_epoch` gives them.
    """
    accuracy = {epoch: own[ACCURACY] for epoch, own in values.items() if ACCURACY in own}
    found = []
    for metric, worth in {ACCURACY: lambda value: value, **WORTH}.items():
        own = {epoch: worth(of[metric]) for epoch, of in values.items() if metric in of}
        if not own:
            continue
        best = max(own, key=lambda epoch: own[epoch])
        reached = accuracy.get(best)
        lost = None if reached is None else max(accuracy.values()) - reached
        both = [epoch for epoch in own if epoch in accuracy]
        pairs = [own[epoch] for epoch in both], [accuracy[epoch] for epoch in both]
        varied = len(both) > 2 and all(len(set(values)) > 1 for values in pairs)
        agreement = float(stats.spearmanr(*pairs).statistic) if varied and metric != ACCURACY else None
        found.append(Choice(metric, best, reached, lost, agreement))
    return found
