"""Ridge regression of real values on frozen features: R² and mean absolute error."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfsup.errors import UserError
from selfsup.eval.features import FeatureSet
from selfsup.eval.probing import split_off
from selfsup.eval.record import FRACTION, Record
from selfsup.eval.registry import protocol
from selfsup.eval.ridge import LARGEST, solve_ridge
from selfsup.eval.subject import Subject
from selfsup.eval.targets import parts_of, standardised
from selfsup.settings import setting

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)


@dataclass
class RegressionSettings:
    """How the regression is fitted.

    Attributes:
        penalties: Among which one is chosen for each target, for each training image.
    """

    penalties: list[float] = setting(list(PENALTIES), above=0)


@protocol("regression", RegressionSettings, needs=("real",), plain=True, shown=("target", "selected_on"))
def evaluate(subject: Subject, settings: RegressionSettings) -> Iterator[Record]:
    """R² (the mean over the targets) and mean absolute error of each target, penalties chosen on the hold-out."""
    parts = parts_of(subject, "real")
    found = regression(
        parts.train, parts.scored, holdout=parts.holdout, penalties=settings.penalties, seed=subject.seed
    )
    grid = {"penalties": list(settings.penalties), "optimizer": "closed form", "features": "standardised"}
    how = {"grid": grid, "selected_on": found.selected_on, **parts.how}
    names = [parts.names[place] for place in found.scored]
    per_target = dict(zip(names, found.r2, strict=True))
    chosen = dict(zip(names, found.penalties, strict=True))
    yield Record(
        split=parts.split,
        metric="r2",
        value=sum(found.r2) / len(found.r2),
        unit=FRACTION,
        how={"target": "mean of all" if len(names) > 1 else names[0], "primary": True, **how},
        found={"per_target": per_target, "chosen": chosen},
    )
    for name, error, guess in zip(names, found.mae, found.mae_of_mean, strict=True):
        yield Record(
            split=parts.split,
            metric="mae",
            value=error,
            how={"target": name, "primary": len(names) == 1, **how},
            found={"mae_of_mean": guess, "r2": per_target[name]},
        )


@dataclass(frozen=True)
class RegressionResult:
    """What a regression found, of each target that was scored.

    Attributes:
        scored: Columns of the targets; those that are constant over the test images are left out.
        r2: ``1 - Σ (y - ŷ)² / Σ (y - mean y)²`` on the test images.
        mae: Mean of ``|y - ŷ|`` there, in the unit of the target.
        mae_of_mean: The same of the mean of the training images as the guess.
        penalties: The penalty that was chosen, by the lowest squared error on the hold-out.
        selected_on: Images the choice was made on, in words.
        weight, bias: float64 ``[D,T]`` and ``[T]`` on standardised features, of the targets that were scored.
        seconds: Time taken.
    """

    scored: list[int]
    r2: list[float]
    mae: list[float]
    mae_of_mean: list[float]
    penalties: list[float]
    selected_on: str
    weight: Tensor
    bias: Tensor
    seconds: float


def regression(
    train: FeatureSet,
    test: FeatureSet,
    *,
    holdout: FeatureSet | None = None,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> RegressionResult:
    """Fit a ridge regression for every penalty, choose one for each target, and test it once.

    Each minimises ``mean_n (y_n - w·x_n - b)² + λ ‖w‖²`` on standardised features: ``λ N`` is scikit-learn's
    ``Ridge(alpha)``. The choice is by the squared error on the hold-out, of equal ones the first.

    Args:
        train, test: Their ``labels`` are the targets, floats ``[N,T]``.
        holdout: What the choice is made on; None sets 10 % of ``train`` aside, drawn with ``seed``.
        penalties: ``λ``.
        seed: Of the images that are set aside.

    Raises:
        UserError: Targets that are no finite numbers ``[N,T]``, different widths, features that are not finite, test
            targets that are all constant, no penalty or one that is not above 0, more than 8192 images and dimensions.
    """
    start = time.perf_counter()
    if not penalties or min(penalties) <= 0:
        raise UserError("eval.regression.penalties: give at least one value, all above 0.")
    selected_on = "holdout"
    if holdout is None:
        train, holdout = split_off(train, seed)
        selected_on = f"10% of train ({len(holdout)} images)"
    fitted, chosen_on, asked = (
        _targets(part, name) for part, name in ((train, "train"), (holdout, "holdout"), (test, "test"))
    )
    if not fitted.shape[1] == chosen_on.shape[1] == asked.shape[1]:
        raise UserError(
            f"The train features have {fitted.shape[1]} targets, those of the hold-out {chosen_on.shape[1]} and the "
            f"test features {asked.shape[1]}; give all the same."
        )
    varied = (asked != asked[0]).any(0)
    scored = varied.nonzero().flatten()
    if not len(scored):
        raise UserError("data.labels: every target is the same for all test images, so R² says nothing; add images.")
    if len(scored) < len(varied):
        left = len(varied) - len(scored)
        warnings.warn(f"{left} targets are the same for all test images and count nowhere.", stacklevel=2)
    inputs, held, tested = standardised(train, holdout, test)
    if min(inputs.shape) > LARGEST:
        raise UserError(
            f"regression: {inputs.shape[0]} images of {inputs.shape[1]} dimensions are too many for a closed form; "
            f"lower data.limit to {LARGEST}."
        )
    own = fitted[:, scored]
    weights, biases = solve_ridge(inputs, lambda rows: own[rows], own.mean(0), penalties)
    errors = torch.stack(
        [(held @ w + b - chosen_on[:, scored]).square().mean(0) for w, b in zip(weights, biases, strict=True)]
    )
    best, columns = errors.argmin(0), torch.arange(len(scored))
    weight, bias = weights[best, :, columns].T, biases[best, columns]
    truth = asked[:, scored]
    off = tested @ weight + bias - truth
    r2 = 1 - off.square().sum(0) / (truth - truth.mean(0)).square().sum(0)
    return RegressionResult(
        scored.tolist(),
        r2.tolist(),
        off.abs().mean(0).tolist(),
        (own.mean(0) - truth).abs().mean(0).tolist(),
        [float(penalties[place]) for place in best.tolist()],
        selected_on,
        weight,
        bias,
        time.perf_counter() - start,
    )


def _targets(part: FeatureSet, name: str) -> Tensor:
    if part.labels is None or part.labels.ndim != 2 or not part.labels.is_floating_point() or not len(part):
        raise UserError(f"The {name} labels are no real targets; give floats [N,T], a row for each feature.")
    bad = int((~part.labels.isfinite().all(1)).sum())
    if bad:
        raise UserError(f"The {name} targets are NaN or infinite for {bad} of {len(part)} images; leave these out.")
    return part.labels.double()
