"""Linear probe: many linear classifiers on frozen features, trained at once."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from selfsup.bars import progress_bar
from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.eval.feature_choices import POOLED
from selfsup.eval.features import FeatureSet
from selfsup.eval.probing import Parts, ProbeParts, ProbeResult, better, feature_probe, image_probe, prepare_parts
from selfsup.eval.published import CROP_AND_FLIP_WORDS, PROBE_PROTOCOLS, paper_probe, paper_resize
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject, choice_splits, crop_words
from selfsup.functional.arguments import is_count
from selfsup.settings import setting

MOMENTUM = 0.9
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
WEIGHT_DECAYS = (0.0, 1e-4, 1e-3, 1e-2)


@dataclass
class LinearProbeSettings:
    """How the linear probe is trained.

    Attributes:
        learning_rates: Each is paired with every weight decay.
        weight_decays: Weight decays of the grid.
        epochs: Passes over the training features.
        batch_size: Features in a step.
        features: Features it chooses from: ``pooled`` (the backbone's own), ``last_N`` (the last N blocks or stages
            side by side; class tokens where there are any) and ``last_N_mean`` (with the mean of the last patch tokens
            besides).
        paper: Run the probe as a paper did, with augmentation and no grid: ``simclr``, ``moco``, … (see
            ``PROBE_PROTOCOLS``); None is the grid on cached features.
        paper_epochs: Passes of that over the images; None is the paper's.
    """

    learning_rates: list[float] = setting(list(LEARNING_RATES), least=0)
    weight_decays: list[float] = setting(list(WEIGHT_DECAYS), least=0)
    epochs: int = setting(100, least=1)
    batch_size: int = setting(256, least=1)
    features: list[str] = field(default_factory=lambda: [POOLED])
    paper: str | None = setting(None, choices=PROBE_PROTOCOLS)
    paper_epochs: int | None = setting(None, least=1)


@protocol("linear_probe", LinearProbeSettings, needs=("labels",), plain=True, shown=("probe_protocol", "selected_on"))
def evaluate(subject: Subject, settings: LinearProbeSettings) -> Iterator[Record]:
    """Accuracy of a linear classifier, its learning rate, weight decay and features chosen on the hold-out.

    ``eval.seeds=5`` gives mean and deviation, ``eval.label_fraction=0.01`` trains on 1 % of the labels, and
    ``eval.linear_probe.features=[pooled,last_4]`` chooses among features. ``eval.linear_probe.paper=moco`` (simclr,
    dino, …) runs a paper's probe, with augmented images, in place of the grid.
    """
    if settings.paper is not None:
        yield _as_a_paper(subject, settings)
        return
    grid = {
        "learning_rates": list(settings.learning_rates),
        "weight_decays": list(settings.weight_decays),
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "optimizer": "SGD, Nesterov momentum 0.9, cosine",
        "features": "standardised",
    }
    choices = {POOLED: subject.features} if settings.features == [POOLED] else {}
    if not choices:
        network = replace(subject.encoder, network=subject.network)
        choices = choice_splits(network, subject.splits, settings.features)
        grid["choices"] = list(choices)

    def probe(train: Parts, test: Parts, holdout: Parts | None, seed: int) -> ProbeResult[ProbeSetting]:
        return linear_probe(
            train,
            test,
            holdout=holdout,
            learning_rates=settings.learning_rates,
            weight_decays=settings.weight_decays,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            seed=seed,
            device=subject.encoder.device,
            progress=subject.encoder.progress,
        )

    yield feature_probe(subject, choices, grid, probe)


def _as_a_paper(subject: Subject, settings: LinearProbeSettings) -> Record:
    name = settings.paper
    if name not in PROBE_PROTOCOLS:
        known = ", ".join(PROBE_PROTOCOLS)
        raise UserError(f"eval.linear_probe.paper: there is no '{name}'; use one of {known}, or null for the grid.")
    paper = PROBE_PROTOCOLS[name]
    encoder = replace(subject.encoder, network=subject.network)

    def probe(train: ImageDataset, test: ImageDataset, holdout: ImageDataset | None, seed: int) -> ProbeResult[None]:
        return paper_probe(encoder, train, test, paper, epochs=settings.paper_epochs, seed=seed)

    epochs = paper.epochs if settings.paper_epochs is None else settings.paper_epochs
    grid = asdict(paper) | {"epochs": epochs, "features": "as they are"}
    grid["augment"] = CROP_AND_FLIP_WORDS if paper.augment else "none"
    record = image_probe(subject, grid, probe)
    size = subject.splits.train.image_size
    crop = crop_words(size, encoder.resize or paper_resize(size))
    return replace(record, how={**record.how, "crop": crop, "probe_protocol": name, "primary": False})


@dataclass(frozen=True)
class ProbeSetting:
    """A learning rate, a weight decay and features, and what came of them on the images set aside for the choice."""

    learning_rate: float
    weight_decay: float
    holdout_accuracy: float
    holdout_loss: float
    features: str = POOLED


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
        raise UserError(
            "eval.linear_probe.learning_rates and eval.linear_probe.weight_decays: give at least one value each."
        )
    if not all(map(is_count, (epochs, batch_size))):
        raise UserError("eval.linear_probe.epochs and eval.linear_probe.batch_size: give whole numbers, at least 1.")
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
        raise UserError("eval.linear_probe.features: name at least one.")
    chosen, parts, weight, bias = best
    return parts.result(settings, chosen, weight, bias, start)


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
    for _ in progress_bar(range(epochs), desc=f"linear probe, {heads} settings", unit="epoch", disable=not progress):
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
