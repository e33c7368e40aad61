"""What the probes share: parts made ready, the choice of a setting, the one look at the test images, the record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.eval.feature_choices import POOLED
from selfsup.eval.features import (
    FeatureSet,
    check_finite,
    check_widths,
    known_labels,
    labels_of,
    take,
    tell_absent,
)
from selfsup.eval.record import Record, Spread
from selfsup.eval.subject import SPLIT_OFF, SplitFeatures, Subject
from selfsup.functional.arguments import count, integers, number

CONFUSION_CLASSES = 100  # most classes whose confusions are recorded and drawn; more cannot be read

Setting = TypeVar("Setting")


Parts = Mapping[str, FeatureSet]
FeatureProbe = Callable[[Parts, Parts, Parts | None, int], Any]
ImageProbe = Callable[[ImageDataset, ImageDataset, ImageDataset | None, int], Any]


@dataclass(frozen=True)
class LinearClassifier:
    """A linear classifier on standardised features.

    Attributes:
        mean, scale: float32 ``[D]``: a feature ``x`` enters as ``(x - mean) · scale``.
        weight: float32 ``[D,C]``.
        bias: float32 ``[C]``.
        classes: int64 ``[C]``, the label each column stands for.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    classes: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Return the scores of the classes: float ``[N,D]`` to ``[N,C]``."""
        return (features - self.mean) * self.scale @ self.weight + self.bias

    def predict(self, features: Tensor) -> Tensor:
        """Return the label of each row: float ``[N,D]`` to int64 ``[N]``."""
        return self.classes[self.logits(features).argmax(1)]


@dataclass(frozen=True)
class ProbeResult(Generic[Setting]):
    """What a probe with a linear classifier found.

    Attributes:
        accuracy: Fraction of the test images whose class is right, of the chosen setting.
        chosen: The setting with the highest accuracy on the hold-out (then the lowest loss there).
        settings: Every setting.
        selected_on: Images the choice was made on, in words.
        per_class: Accuracy on the test images of each label.
        labels: int64 ``[L]``, the labels of training and test images, sorted.
        confusion: int64 ``[L,L]``: test images by true and predicted label, in the order of ``labels``.
        classifier: The chosen classifier.
        seconds: Time taken.
    """

    accuracy: float
    chosen: Setting
    settings: list[Setting]
    selected_on: str
    per_class: dict[int, float]
    labels: Tensor
    confusion: Tensor
    classifier: LinearClassifier
    seconds: float


@dataclass(frozen=True)
class Tally:
    """What a classifier's scores of labelled images come to; see :class:`ProbeResult`."""

    accuracy: float
    per_class: dict[int, float]
    labels: Tensor
    confusion: Tensor


def tally(logits: Tensor, targets: Tensor, truth: Tensor, classes: Tensor) -> Tally:
    """Count what is right, and what is taken for what.

    Args:
        logits, targets: As :func:`score`.
        truth: int64 ``[N]``, the labels, on the CPU.
        classes: int64 ``[C]``, the label of each column, sorted.
    """
    right = score(logits, targets)[0].cpu()
    predicted = classes[logits.argmax(1).cpu()]
    labels = torch.unique(torch.cat([classes, truth]))
    pairs = torch.searchsorted(labels, truth) * len(labels) + torch.searchsorted(labels, predicted)
    return Tally(
        accuracy=right.double().mean().item(),
        per_class={int(c): right[truth == c].double().mean().item() for c in torch.unique(truth)},
        labels=labels,
        confusion=torch.bincount(pairs, minlength=len(labels) ** 2).view(len(labels), -1),
    )


@dataclass(frozen=True)
class ProbeParts:
    """The parts of a probe as its solver takes them; keys are ``train``, ``holdout`` and ``test``.

    Attributes:
        inputs: float32 ``[N,D]`` on the computing device, standardised with the training statistics.
        targets: int64 ``[N]`` there, positions in ``classes``; -1 for a label that training lacks.
        labels: int64 ``[N]`` on the CPU.
        classes: int64 ``[C]``, the training labels, sorted.
        mean, scale: See ``LinearClassifier``.
        selected_on: Images the choice is made on, in words.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor]
    labels: dict[str, Tensor]
    classes: Tensor
    mean: Tensor
    scale: Tensor
    selected_on: str

    def on_holdout(self, weight: Tensor, bias: Tensor) -> tuple[float, float]:
        """Return accuracy and mean cross-entropy on the hold-out of a classifier, ``[D,C]`` and ``[C]``."""
        right, loss = score(self.inputs["holdout"] @ weight + bias, self.targets["holdout"])
        return right.double().mean().item(), loss

    def result(
        self, settings: list[Setting], chosen: Setting, weight: Tensor, bias: Tensor, start: float
    ) -> ProbeResult[Setting]:
        """Test the chosen classifier, the one look at the test images; ``start`` is when the clock began."""
        logits = self.inputs["test"] @ weight + bias
        found = tally(logits, self.targets["test"], self.labels["test"], self.classes)
        return ProbeResult(
            **vars(found),
            chosen=chosen,
            settings=settings,
            selected_on=self.selected_on,
            classifier=LinearClassifier(self.mean, self.scale, weight.cpu(), bias.cpu(), self.classes),
            seconds=time.perf_counter() - start,
        )


def prepare_parts(
    train: FeatureSet, test: FeatureSet, holdout: FeatureSet | None, seed: int, device: torch.device | str | None
) -> ProbeParts:
    """Check, standardise and move the features of a probe; without a hold-out 10 % of ``train`` become one.

    Raises:
        UserError: Missing labels, different widths, features that are not finite, too few images to set some aside.
    """
    if holdout is None:
        train, holdout = split_off(train, seed)
        selected_on = f"{SPLIT_OFF:.0%} of train ({len(holdout)} images)"
    else:
        selected_on = "holdout"
    parts = {"train": train, "holdout": holdout, "test": test}
    labels = {name: known_labels(part, name) for name, part in parts.items()}
    for name, part in parts.items():
        check_widths(train, part)
        check_finite(part.features, f"{name} features")
    where = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    classes = torch.unique(labels["train"])
    mean, scale = _standardiser(train.features)
    return ProbeParts(
        {name: ((part.features - mean) * scale).to(where) for name, part in parts.items()},
        {name: class_positions(values, classes, name).to(where) for name, values in labels.items()},
        labels,
        classes,
        mean,
        scale,
        selected_on,
    )


def labelled_positions(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Draw a class-balanced subset: the same number of images of every class, as in the 1 % and 10 % of SimCLR.

    Of ``N`` images in ``C`` classes each class gives ``round(fraction · N / C)``, at least one, or all it has where
    that is fewer. With one seed a larger fraction contains a smaller one.

    Args:
        labels: int64 ``[N]``; images without a label (-1) are never drawn.
        fraction: Above 0, at most 1; 1 is every image that has a label.
        seed: Of the draw.

    Returns:
        int64 ``[n]``, positions in increasing order.

    Raises:
        UserError: A fraction out of range, or no image has a label.
    """
    integers("labelled_positions", "[N]", labels=labels)
    count("labelled_positions", least=0, seed=seed)
    number("labelled_positions", below=2**63, seed=seed)
    number("labelled_positions", fraction=fraction)
    if not 0 < fraction <= 1:
        raise UserError(f"eval.label_fraction is {fraction}; set a fraction above 0, and 1 for all labels.")
    classes = torch.unique(labels[labels >= 0])
    if not len(classes):
        raise UserError("eval.label_fraction: none of the images has a label.")
    if fraction == 1:
        return (labels >= 0).nonzero().flatten()
    each = max(1, round(fraction * int((labels >= 0).sum()) / len(classes)))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == c][:each] for c in classes]).sort().values


class OnHoldout(Protocol):
    """What every kind of setting says of the images set aside for the choice."""

    @property
    def holdout_accuracy(self) -> float: ...

    @property
    def holdout_loss(self) -> float: ...


def better(first: OnHoldout, second: OnHoldout) -> bool:
    """Whether the first has the higher accuracy on the hold-out, or the same one at a lower loss."""
    return (first.holdout_accuracy, -first.holdout_loss) > (second.holdout_accuracy, -second.holdout_loss)


def feature_probe(
    subject: Subject, choices: Mapping[str, SplitFeatures], grid: Mapping[str, Any], probe: FeatureProbe
) -> Record:
    """Run a probe of features for every seed, and return its record: the accuracy of the setting that was chosen.

    The choice is made on the hold-out. Where the hold-out is itself scored, because there are no test images, it is
    made on a part of the training images instead. With several ``eval.seeds`` the value is the mean over them, each
    with a choice of its own; ``chosen`` and ``settings`` are those of the first.

    Args:
        subject: What is judged; of its settings ``label_fraction`` and ``seeds``.
        choices: Features by name, among which the probe chooses as among its other settings.
        grid: What the probe chooses from, for the record.
        probe: ``(train, test, holdout, seed) -> result``, each part by the names of the choices.
    """
    first = next(iter(choices.values()), None)
    if first is None:
        raise UserError("eval.linear_probe.features: name at least one.")
    split, _ = first.scored
    test = {name: part.scored[1] for name, part in choices.items()}
    holdout = {name: part.holdout for name, part in choices.items() if part.holdout is not None and split == "test"}
    labels = known_labels(first.train, "train")

    def run(positions: Tensor, seed: int) -> Any:
        whole = len(positions) == len(labels)
        train = {name: part.train if whole else take(part.train, positions) for name, part in choices.items()}
        return probe(train, test, holdout or None, seed)

    return _over_seeds(subject, labels, run, split, dict(first.how) | {"grid": dict(grid)})


def pooled_probe(subject: Subject, grid: Mapping[str, Any], probe: Callable[..., Any]) -> Record:
    """Run a probe of the pooled features: ``(train, test, holdout=…, seed=…, device=…) -> result``."""

    def run(train: Parts, test: Parts, holdout: Parts | None, seed: int) -> Any:
        held = None if holdout is None else holdout[POOLED]
        return probe(train[POOLED], test[POOLED], holdout=held, seed=seed, device=subject.encoder.device)

    return feature_probe(subject, {POOLED: subject.features}, grid, run)


def image_probe(subject: Subject, grid: Mapping[str, Any], probe: ImageProbe) -> Record:
    """Run a probe that sees the images for every seed: ``probe(train, test, holdout, seed)``; see ``feature_probe``."""
    split, scored = subject.scored
    train = subject.splits.train
    labels = labels_of(train)

    def run(positions: Tensor, seed: int) -> Any:
        return probe(train.subset(positions), scored, subject.chosen_on, seed)

    return _over_seeds(subject, labels, run, split, dict(subject.all_images) | {"grid": dict(grid)})


def _over_seeds(
    subject: Subject, labels: Tensor, run: Callable[[Tensor, int], Any], split: str, how: dict[str, Any]
) -> Record:
    """Run a probe on the labels of each seed."""
    config = subject.config
    if config.seeds < 1:
        raise UserError("eval.seeds: give at least 1.")
    seeds = [subject.seed + number for number in range(config.seeds)]
    drawn = [labelled_positions(labels, config.label_fraction, one) for one in seeds]
    results = [run(positions, one) for positions, one in zip(drawn, seeds, strict=True)]
    values = torch.tensor([result.accuracy for result in results], dtype=torch.double)
    first = results[0]
    found: dict[str, Any] = {
        "per_class": {
            str(label): sum(result.per_class[label] for result in results) / len(results) for label in first.per_class
        },
        "seconds": round(sum(result.seconds for result in results), 3),
    }
    if first.chosen is not None:
        found |= {"chosen": _as_json(first.chosen), "settings": [_as_json(setting) for setting in first.settings]}
    if len(results) > 1:
        found["values"] = values.tolist()
    if len(first.labels) <= CONFUSION_CLASSES and all(torch.equal(first.labels, r.labels) for r in results):
        total = torch.stack([result.confusion for result in results]).sum(0)
        found["confusion"] = {"labels": first.labels.tolist(), "counts": total.tolist()}
    how |= {
        "seeds": seeds,
        "label_fraction": config.label_fraction,
        "labelled_images": len(drawn[0]),
        "selected_on": first.selected_on,
        "primary": config.label_fraction == 1,
    }
    spread = Spread(values.std().item()) if len(results) > 1 else None
    return Record(split=split, metric="top1", value=values.mean().item(), spread=spread, how=how, found=found)


def _as_json(setting: Any) -> dict[str, Any]:
    found = asdict(setting)
    if not math.isfinite(setting.holdout_loss):  # it diverged, and JSON has no infinity
        found["holdout_loss"] = None
    return found


def split_off(train: FeatureSet, seed: int) -> tuple[FeatureSet, FeatureSet]:
    """Return the other 90 % of the training images and the 10 % that are set aside for choices, drawn with a seed."""
    count = round(SPLIT_OFF * len(train))
    if not 1 <= count < len(train):
        raise UserError(
            f"A probe cannot set images aside from {len(train)} training images; give a holdout (data.holdout)."
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return take(train, order[count:].sort().values), take(train, order[:count].sort().values)


def _standardiser(features: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = features.mean(0), features.std(0, correction=0)
    # a dimension that is constant in training says nothing, and its rounding noise must not be blown up
    used = std > 1e-6 * std.max()
    return mean, torch.where(used, 1 / std.where(used, torch.ones_like(std)), torch.zeros_like(std))


def class_positions(labels: Tensor, classes: Tensor, name: str) -> Tensor:
    """Return the position of each label in the sorted classes, -1 where it is not among them."""
    positions = torch.searchsorted(classes, labels).clamp_(max=len(classes) - 1)
    positions[classes[positions] != labels] = -1
    tell_absent(labels, classes, name)
    return positions


def score(logits: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """Return which rows are right, and the mean cross-entropy; a classifier that diverged is wrong everywhere.

    Args:
        logits: float ``[N,C]``.
        targets: int64 ``[N]``, columns of the logits; -1 for a label that has none.
    """
    finite = logits.isfinite().all(1)
    right = (logits.argmax(1) == targets) & finite
    loss = F.cross_entropy(logits, targets, ignore_index=-1).item() if bool(finite.all()) else math.inf
    return right, loss
