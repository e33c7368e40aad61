"""Linear probe: many linear classifiers on frozen features, trained at once."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from selfsup.errors import UserError
from selfsup.eval.config import LEARNING_RATES, WEIGHT_DECAYS
from selfsup.eval.features import FeatureSet, check_finite, check_widths, known_labels, tell_absent

MOMENTUM = 0.9
SPLIT_OFF = 0.1
POOLED = "pooled"  # the name of the backbone's own feature among the feature choices

Setting = TypeVar("Setting")


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
class ProbeSetting:
    """A learning rate, a weight decay and features, and what came of them on the images set aside for the choice."""

    learning_rate: float
    weight_decay: float
    holdout_accuracy: float
    holdout_loss: float
    features: str = POOLED


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
        right, loss = _score(self.inputs["holdout"] @ weight + bias, self.targets["holdout"])
        return right.double().mean().item(), loss

    def result(
        self, settings: list[Setting], chosen: Setting, weight: Tensor, bias: Tensor, start: float
    ) -> ProbeResult[Setting]:
        """Test the chosen classifier, the one look at the test images; ``start`` is when the clock began."""
        logits = self.inputs["test"] @ weight + bias
        right = _score(logits, self.targets["test"])[0].cpu()
        truth, predicted = self.labels["test"], self.classes[logits.argmax(1).cpu()]
        labels = torch.unique(torch.cat([self.classes, truth]))
        pairs = torch.searchsorted(labels, truth) * len(labels) + torch.searchsorted(labels, predicted)
        return ProbeResult(
            accuracy=right.double().mean().item(),
            chosen=chosen,
            settings=settings,
            selected_on=self.selected_on,
            per_class={int(c): right[truth == c].double().mean().item() for c in torch.unique(truth)},
            labels=labels,
            confusion=torch.bincount(pairs, minlength=len(labels) ** 2).view(len(labels), -1),
            classifier=LinearClassifier(self.mean, self.scale, weight.cpu(), bias.cpu(), self.classes),
            seconds=time.perf_counter() - start,
        )


def prepare_parts(
    train: FeatureSet,
    test: FeatureSet,
    holdout: FeatureSet | None,
    seed: int,
    device: torch.device | str | None,
) -> ProbeParts:
    """Check, standardise and move the features of a probe; without a hold-out 10 % of ``train`` become one.

    Raises:
        UserError: Missing labels, different widths, features that are not finite, too few images to set some aside.
    """
    if holdout is None:
        train, holdout = _split_off(train, seed)
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
        fraction: Above 0, at most 1; 1 is every image.
        seed: Of the draw.

    Returns:
        int64 ``[n]``, positions in increasing order.

    Raises:
        UserError: A fraction out of range.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"eval.label_fraction is {fraction}; set a fraction above 0, and 1 for all labels.")
    if fraction == 1:
        return torch.arange(len(labels))
    classes = torch.unique(labels[labels >= 0])
    each = max(1, round(fraction * int((labels >= 0).sum()) / max(1, len(classes))))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == c][:each] for c in classes]).sort().values


def take(part: FeatureSet, positions: Tensor) -> FeatureSet:
    """Return some rows of a part."""
    labels = None if part.labels is None else part.labels[positions]
    return FeatureSet(part.features[positions], labels, part.index[positions])


def linear_probe(
    train: FeatureSet | Mapping[str, FeatureSet],
    test: FeatureSet | Mapping[str, FeatureSet],
    *,
    holdout: FeatureSet | Mapping[str, FeatureSet] | None = None,
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    epochs: int = 100,
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> ProbeResult[ProbeSetting]:
    """Train a linear classifier with every learning rate and weight decay, choose one, and test it once.

    Features are standardised with the mean and standard deviation of the training features, so that one grid of
    learning rates suits every backbone. The classifiers start at zero and take the same batches; see
    ``train_classifiers``. Test images of a class that no training image has count as errors, with a warning.

    Args:
        train: Features to train on. Several features of the same images by name, such as those of the last layers, are
            one more dimension of the grid; ``test`` and ``holdout`` then have the same names.
        test: Features the chosen classifier is tested on.
        holdout: Features the choice is made on; None sets 10 % of ``train`` aside, drawn with ``seed``, and
            ``ProbeResult.selected_on`` says so.
        learning_rates: Learning rates as SGD takes them, not scaled by the batch size.
        weight_decays: Each is paired with every learning rate.
        epochs: Passes over the training features.
        batch_size: Features in a step.
        seed: Order of the batches, and the split.
        device: Where to compute; None is the GPU when there is one.
        progress: Show a progress bar.

    Raises:
        UserError: Missing labels, different widths, features that are not finite, an empty grid.
    """
    start = time.perf_counter()
    if not learning_rates or not weight_decays:
        raise UserError("eval.probe_learning_rates and eval.probe_weight_decays: give at least one value each.")
    if epochs < 1 or batch_size < 1:
        raise UserError("eval.probe_epochs and eval.probe_batch_size: give at least 1.")
    choices = train if isinstance(train, Mapping) else {POOLED: train}
    grid = [(rate, decay) for rate in learning_rates for decay in weight_decays]
    settings: list[ProbeSetting] = []
    best: tuple[ProbeSetting, ProbeParts, Tensor, Tensor] | None = None
    for name in choices:
        parts = prepare_parts(
            choices[name],
            test[name] if isinstance(test, Mapping) else test,
            holdout[name] if isinstance(holdout, Mapping) else holdout,
            seed,
            device,
        )
        weights, biases = train_classifiers(
            parts.inputs["train"],
            parts.targets["train"],
            len(parts.classes),
            grid,
            epochs,
            batch_size,
            seed,
            progress,
        )
        for (rate, decay), weight, bias in zip(grid, weights, biases, strict=True):
            setting = ProbeSetting(rate, decay, *parts.on_holdout(weight, bias), name)
            settings.append(setting)
            if best is None or better(setting, best[0]):
                best = setting, parts, weight.clone(), bias.clone()
    if best is None:
        raise UserError("eval.probe_features: name at least one.")
    chosen, parts, weight, bias = best
    return parts.result(settings, chosen, weight, bias, start)


class OnHoldout(Protocol):
    """What every kind of setting tells of the images set aside for the choice."""

    @property
    def holdout_accuracy(self) -> float: ...

    @property
    def holdout_loss(self) -> float: ...


def better(first: OnHoldout, second: OnHoldout) -> bool:
    """Whether the first has the higher accuracy on the hold-out, or the same one at a lower loss."""
    return (first.holdout_accuracy, -first.holdout_loss) > (second.holdout_accuracy, -second.holdout_loss)


@torch.no_grad()
def train_classifiers(
    inputs: Tensor,
    targets: Tensor,
    classes: int,
    grid: Sequence[tuple[float, float]],
    epochs: int,
    batch_size: int,
    seed: int,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Train one softmax classifier for each (learning rate, weight decay) of the grid, all in the same matrix products.

    Each is what SGD with Nesterov momentum 0.9 gives for it alone: mean cross-entropy over the batch, weight decay on
    weight and bias, learning rate ``η ½ (1 + cos(π t/T))`` at step ``t`` of ``T``, zero at the start. The order of each
    epoch is the next ``torch.randperm`` of a CPU generator seeded with ``seed``; the last batch may be smaller.

    Args:
        inputs: float ``[N,D]``.
        targets: int64 ``[N]``, 0 to ``classes - 1``.

    Returns:
        Weights ``[G,D,C]`` and biases ``[G,C]`` for the ``G`` settings.
    """
    count, width = inputs.shape
    heads = len(grid)
    # the bias is the weight of a constant input: one product and one update for both
    inputs = torch.cat([inputs, inputs.new_ones(count, 1)], dim=1)
    rates, decays = (inputs.new_tensor(values) for values in zip(*grid, strict=True))
    # heads stand last: what differs between them then runs along memory, softmax and updates too
    weight = inputs.new_zeros(width + 1, classes, heads)
    velocity = torch.zeros_like(weight)
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * math.ceil(count / batch_size)
    step = 0
    for _ in tqdm(range(epochs), desc=f"linear probe, {heads} settings", unit="epoch", disable=not progress):
        order = torch.randperm(count, generator=generator).to(inputs.device)
        for positions in torch.split(order, batch_size):
            rows = len(positions)
            batch = inputs.index_select(0, positions)
            error = (batch @ weight.flatten(1)).view(rows, classes, heads).softmax(1)
            error[torch.arange(rows, device=error.device), targets[positions]] -= 1
            decayed = (weight * decays).flatten(1)
            gradient = torch.addmm(decayed, batch.T, error.flatten(1), alpha=1 / rows).view_as(weight)
            velocity.mul_(MOMENTUM).add_(gradient)
            gradient.add_(velocity, alpha=MOMENTUM)
            weight.addcmul_(gradient, rates, value=-0.5 * (1 + math.cos(math.pi * step / steps)))
            step += 1
    weight = weight.permute(2, 0, 1).contiguous()
    return weight[:, :-1], weight[:, -1]


def _split_off(train: FeatureSet, seed: int) -> tuple[FeatureSet, FeatureSet]:
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


def _score(logits: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """Return which rows are right, and the mean cross-entropy; a classifier that diverged is wrong everywhere."""
    finite = logits.isfinite().all(1)
    right = (logits.argmax(1) == targets) & finite
    loss = F.cross_entropy(logits, targets, ignore_index=-1).item() if bool(finite.all()) else math.inf
    return right, loss
