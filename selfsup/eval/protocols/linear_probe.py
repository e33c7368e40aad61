"""Linear probe: many linear classifiers on frozen features, trained at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace

from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.eval.feature_choices import POOLED
from selfsup.eval.linear import LEARNING_RATES, WEIGHT_DECAYS, ProbeSetting, linear_probe
from selfsup.eval.probing import Parts, ProbeResult, feature_probe, image_probe
from selfsup.eval.published import CROP_AND_FLIP_WORDS, PROBE_PROTOCOLS, paper_probe, paper_resize
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject, choice_splits, crop_words
from selfsup.settings import setting


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
