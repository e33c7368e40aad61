"""Multi-label linear probe: one logistic regression a label on frozen features."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from selfsup.errors import UserError
from selfsup.eval.features import FeatureSet
from selfsup.eval.logistic import fit_logistic
from selfsup.eval.probing import split_off
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject
from selfsup.eval.targets import (
    average_precision,
    check_tables,
    label_table,
    parts_of,
    precision_by_name,
    standardised,
)
from selfsup.settings import setting

C = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)


@dataclass
class MultilabelProbeSettings:
    """How the classifiers are fitted.

    Attributes:
        c: Inverse penalties among which one is chosen for all labels, as scikit-learn's ``C``.
        iterations: Most iterations of L-BFGS.
    """

    c: list[float] = setting(list(C), above=0)
    iterations: int = setting(300, least=1)


@protocol("multilabel_probe", MultilabelProbeSettings, needs=("multilabel",), plain=True, shown=("selected_on",))
def evaluate(subject: Subject, settings: MultilabelProbeSettings) -> Iterator[Record]:
    """Mean average precision of one logistic regression a label, its penalty chosen on the hold-out."""
    parts = parts_of(subject, "multilabel")
    found = multilabel_probe(
        parts.train,
        parts.scored,
        holdout=parts.holdout,
        c=settings.c,
        iterations=settings.iterations,
        seed=subject.seed,
        progress=subject.encoder.progress,
    )
    grid = {"c": list(settings.c), "iterations": settings.iterations, "optimizer": "L-BFGS, all images at once"}
    how: dict[str, Any] = {"grid": grid | {"loss": "one-vs-rest logistic", "features": "standardised"}}
    how |= {"selected_on": found.selected_on, "labels": len(parts.names), "scored_labels": len(found.per_class)}
    yield Record(
        split=parts.split,
        metric="map",
        value=found.mean_average_precision,
        how={**how, "primary": True, **parts.how},
        found={
            "per_label": precision_by_name(found.per_class, parts.names),
            "chosen": asdict(found.chosen),
            "settings": [asdict(one) for one in found.settings],
        },
    )


@dataclass(frozen=True)
class MultilabelSetting:
    """An inverse penalty, and the mean average precision and loss on the images set aside for the choice."""

    c: float
    holdout_map: float
    holdout_loss: float


@dataclass(frozen=True)
class MultilabelProbeResult:
    """What a multi-label probe found.

    Attributes:
        mean_average_precision: Mean over the labels that a test image has, of the chosen setting.
        per_class: Average precision of each of these labels, by its column.
        chosen: The setting with the highest mean average precision on the hold-out, then the lowest loss there.
        settings: Every setting.
        selected_on: Images the choice was made on, in words.
        weight, bias: float64 ``[D,C]`` and ``[C]``, on standardised features; 0 for a label that cannot be learnt.
        seconds: Time taken.
    """

    mean_average_precision: float
    per_class: dict[int, float]
    chosen: MultilabelSetting
    settings: list[MultilabelSetting]
    selected_on: str
    weight: Tensor
    bias: Tensor
    seconds: float


def multilabel_probe(
    train: FeatureSet,
    test: FeatureSet,
    *,
    holdout: FeatureSet | None = None,
    c: Sequence[float] = C,
    iterations: int = 300,
    seed: int = 0,
    progress: bool = True,
) -> MultilabelProbeResult:
    """Fit a logistic regression for every label and every ``c``, choose one ``c`` for all labels, and test it once.

    Each minimises ``c Σ_n log(1 + exp(-y_n (w·x_n + b))) + ½ ‖w‖²`` with ``y`` = ±1 on standardised features, as
    scikit-learn's ``LogisticRegression(C=c)`` does. A label that all or none of the training images have cannot be
    learnt: it scores 0 everywhere, which is chance, with a warning.

    Args:
        train, test: Their ``labels`` are ``[N,C]``: 1 where an image has the label, 0 where it has not.
        holdout: What the choice is made on; None sets 10 % of ``train`` aside, drawn with ``seed``.
        c: Inverse strengths of the penalty.
        iterations: Most iterations of L-BFGS.
        seed: Of the images that are set aside.
        progress: Show a progress bar.

    Raises:
        UserError: Labels that are no such tables, different widths, features that are not finite, no hold-out image
            with a label, no ``c`` or one that is not above 0.
    """
    start = time.perf_counter()
    if not c or not all(0 < value < math.inf for value in c):
        raise UserError("eval.multilabel_probe.c: give at least one value, all above 0.")
    check_tables(label_table(train, "train"), label_table(test, "test"))
    selected_on = "holdout"
    if holdout is None:
        train, holdout = split_off(train, seed)
        selected_on = f"10% of train ({len(holdout)} images)"
    truth = {name: label_table(part, name) for name, part in (("train", train), ("holdout", holdout), ("test", test))}
    if not truth["holdout"].any():
        raise UserError("data.holdout: no image of the hold-out has a label, so nothing can be chosen on it; raise it.")
    inputs, held, asked = standardised(train, holdout, test)
    weights, biases = _fit(inputs, truth["train"], c, iterations, progress)
    settings = []
    for value, weight, bias in zip(c, weights, biases, strict=True):
        scores = held @ weight + bias
        loss = F.binary_cross_entropy_with_logits(scores, truth["holdout"].double()).item()
        settings.append(MultilabelSetting(value, average_precision(scores, truth["holdout"]).nanmean().item(), loss))
    best = max(range(len(settings)), key=lambda place: (settings[place].holdout_map, -settings[place].holdout_loss))
    precision = average_precision(asked @ weights[best] + biases[best], truth["test"])
    per_class = {place: value for place, value in enumerate(precision.tolist()) if not math.isnan(value)}
    return MultilabelProbeResult(
        sum(per_class.values()) / len(per_class),
        per_class,
        settings[best],
        settings,
        selected_on,
        weights[best],
        biases[best],
        time.perf_counter() - start,
    )


def _fit(inputs: Tensor, truth: Tensor, c: Sequence[float], iterations: int, progress: bool) -> tuple[Tensor, Tensor]:
    """Return weights ``[G,D,C]`` and biases ``[G,C]`` of the labels for every ``c``."""
    counts = truth.sum(0)
    learnt = ((counts > 0) & (counts < len(truth))).nonzero().flatten()
    lost = truth.shape[1] - len(learnt)
    if lost:
        warnings.warn(
            f"{lost} labels are those of all or of none of the {len(truth)} training images: they cannot be learnt, "
            "and count as chance.",
            stacklevel=3,
        )
    weights = inputs.new_zeros(len(c), inputs.shape[1], truth.shape[1])
    biases = inputs.new_zeros(len(c), truth.shape[1])
    if len(learnt):
        # Two classes of a softmax with weights u and v are a logistic regression with w = v - u. At the minimum
        # u = -v, so its penalty ½ (‖u‖² + ‖v‖²) is ¼ ‖w‖², and half of c makes it ½ ‖w‖² of c
        targets = truth.T[learnt].long().repeat(len(c), 1)
        strengths = [value / 2 for value in c for _ in range(len(learnt))]
        weight, bias = fit_logistic(inputs, targets, 2, strengths, iterations, progress=progress)
        weights[:, :, learnt] = (weight[..., 1] - weight[..., 0]).view(len(c), len(learnt), -1).transpose(1, 2)
        biases[:, learnt] = (bias[..., 1] - bias[..., 0]).view(len(c), len(learnt))
    return weights, biases
