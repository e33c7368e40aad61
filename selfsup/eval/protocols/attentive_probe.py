"""Attentive probe: classifiers that look at all places of a frozen network's map, many trained at once."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.bars import progress_bar
from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.eval.attentive import FORMS, POOLS, CapiPool, all_logits
from selfsup.eval.encoder import Encoder, home_of
from selfsup.eval.features import check_finite, in_float16, labels_of, positions_of
from selfsup.eval.probing import Tally, better, class_positions, image_probe, score, tally
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject, set_aside
from selfsup.settings import setting

HEAD = 64  # channels of a head, in CAPI's probe and in the transformers that are judged


@dataclass
class AttentiveProbeSettings:
    """How the classifiers are built and trained.

    Attributes:
        form: ``capi``: one query a head looks at the tokens, and a linear layer follows. ``v_jepa``: with a norm
            before, and a residual MLP behind it, which can do more than a linear classifier of what is looked at.
        learning_rates: Each is paired with every weight decay; None are the authors'.
        weight_decays: None are the authors'.
        epochs: Passes over the training tokens.
        batch_size: Images in a step; None is the authors', or all images where there are fewer.
        heads: Attention heads; None is one for 64 channels, and at least one.
        images: Most training images; their tokens are kept in memory, in float16.
    """

    form: str = setting("capi", choices=FORMS)
    learning_rates: list[float] | None = setting(None, least=0)
    weight_decays: list[float] | None = setting(None, least=0)
    epochs: int = setting(20, least=1)
    batch_size: int | None = setting(None, least=1)
    heads: int | None = setting(None, least=1)
    images: int = setting(20_000, least=1)


@protocol(
    "attentive_probe",
    AttentiveProbeSettings,
    needs=("network", "dense", "labels"),
    by_name=True,
    shown=("form", "selected_on"),
)
def evaluate(subject: Subject, settings: AttentiveProbeSettings) -> Iterator[Record]:
    """Accuracy of a classifier that looks at all places of the map, its settings chosen on the hold-out.

    ``eval.attentive_probe.form=v_jepa`` is the other published form; numbers of two forms, or of a linear probe, are
    not to be compared. Both papers train on augmented images; here the tokens of the centre crops are computed once.
    """
    published = FORMS[settings.form]
    size = settings.batch_size or published.batch_size
    grid = {
        "form": settings.form,
        "learning_rates": list(settings.learning_rates or published.learning_rates),
        "weight_decays": list(settings.weight_decays or published.weight_decays),
        "scaled": published.scaled,
        "epochs": settings.epochs,
        "batch_size": size,
        "most_images": settings.images,
        "heads": settings.heads,
        "optimizer": f"AdamW {published.betas}, warm-up over {published.warmup:.0%} of the steps, cosine",
        "augment": "none",
        "features": "tokens of the map as they are",
    }

    def probe(train: ImageDataset, test: ImageDataset, holdout: ImageDataset | None, seed: int) -> AttentiveResult:
        return attentive_probe(subject.encoder, train, test, settings, holdout=holdout, seed=seed)

    record = image_probe(subject, grid, probe)
    primary = record.how["primary"] and settings.form == AttentiveProbeSettings.form
    yield replace(record, how={**record.how, "form": settings.form, "primary": primary})


@dataclass(frozen=True)
class AttentiveSetting:
    """A learning rate and a weight decay, and what came of them on the images set aside for the choice."""

    learning_rate: float
    weight_decay: float
    holdout_accuracy: float
    holdout_loss: float


@dataclass(frozen=True)
class AttentiveResult(Tally):
    """What the probe found; the fields are those of :class:`selfsup.eval.ProbeResult`, without its classifier."""

    chosen: AttentiveSetting
    settings: list[AttentiveSetting]
    selected_on: str
    seconds: float


def attentive_probe(
    encoder: Encoder,
    train: ImageDataset,
    test: ImageDataset,
    settings: AttentiveProbeSettings,
    *,
    holdout: ImageDataset | None = None,
    seed: int = 0,
) -> AttentiveResult:
    """Train an attentive classifier with every learning rate and weight decay, choose one, and test it once.

    The tokens of the training images are computed once and kept in float16, so that memory is bounded by
    ``settings.images`` maps; those of the other images are used and dropped batch by batch. All classifiers start
    alike and take the same batches.

    Args:
        encoder: A network with ``forward_dense`` and how to run it.
        train: Labelled images; at most ``settings.images``, drawn with ``seed``, are read.
        test: Images that the chosen classifier is tested on, all of them.
        settings: Of the classifiers.
        holdout: Images the choice is made on; None sets 10 % of the training images aside, and ``selected_on`` says so.
        seed: Of the choice of images, the start and the order.

    Raises:
        UserError: Missing labels, tokens that are not finite, an empty grid, heads that do not divide the channels, or
            too few images to set some aside.
    """
    start = time.perf_counter()
    train, holdout, selected_on = set_aside(train, holdout, settings.images, seed, "attentive_probe")
    where = torch.device(encoder.device) if encoder.device is not None else home_of(encoder.network)[0]
    kept, labels = [], []
    for tokens, truth in _tokens(encoder, train):
        kept.append(in_float16(tokens))
        labels.append(truth)
    classes = torch.unique(torch.cat(labels))
    targets = class_positions(torch.cat(labels), classes, "train")
    pools, grid = train_pools(torch.cat(kept), targets, len(classes), settings, seed, where, encoder.progress)
    kept.clear()
    logits, _, held = _scores(pools, encoder, holdout, classes, "holdout", where)
    tried = []
    for place, (rate, decay) in enumerate(grid):
        right, loss = score(logits[place], held)
        tried.append(AttentiveSetting(rate, decay, right.double().mean().item(), loss))
    best = 0
    for place, one in enumerate(tried):
        best = place if better(one, tried[best]) else best
    logits, truth, targets = _scores([pools[best]], encoder, test, classes, "test", where)
    found = tally(logits[0], targets, truth, classes)
    return AttentiveResult(
        **vars(found), chosen=tried[best], settings=tried, selected_on=selected_on, seconds=time.perf_counter() - start
    )


def train_pools(
    tokens: Tensor,
    targets: Tensor,
    classes: int,
    settings: AttentiveProbeSettings,
    seed: int,
    device: torch.device | None = None,
    progress: bool = False,
) -> tuple[list[CapiPool], list[tuple[float, float]]]:
    """Train one classifier for each learning rate and weight decay on the same batches.

    Args:
        tokens: float ``[N,L,D]``.
        targets: int64 ``[N]``, positions of the classes.

    Returns:
        The classifiers, in evaluation mode on the device, and their learning rates and decays, as the grid names them.

    Raises:
        UserError: An empty grid, or heads that do not divide the channels.
    """
    published = FORMS[settings.form]
    rates = published.learning_rates if settings.learning_rates is None else settings.learning_rates
    decays = published.weight_decays if settings.weight_decays is None else settings.weight_decays
    grid = [(rate, decay) for rate in rates for decay in decays]
    if not grid:
        raise UserError(
            "eval.attentive_probe.learning_rates and eval.attentive_probe.weight_decays: give at least one value each."
        )
    width = tokens.shape[-1]
    heads = settings.heads or max(1, width // HEAD)
    if width % heads:
        raise UserError(
            f"eval.attentive_probe.heads: {heads} heads do not divide the {width} channels of the tokens; "
            "set a divisor."
        )
    size = min(settings.batch_size or published.batch_size, len(tokens))
    pools = [POOLS[settings.form](width, heads, classes, torch.Generator().manual_seed(seed)).to(device) for _ in grid]
    alike: dict[tuple[float, float], list[Tensor]] = defaultdict(list)
    for pool, (rate, decay) in zip(pools, grid, strict=True):
        peak = rate * size / 256 if published.scaled else rate
        for name, weight in pool.named_parameters():
            spared = "bias" in name or (weight.ndim == 1 and not published.vectors_decay)
            alike[peak, 0.0 if spared else decay].append(weight)
    groups = [{"params": weights, "peak": peak, "weight_decay": decay} for (peak, decay), weights in alike.items()]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=published.betas)
    steps = settings.epochs * math.ceil(len(tokens) / size)
    rising = int(published.warmup * steps)
    generator = torch.Generator().manual_seed(seed)
    step = 0
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        progress_bar(
            total=steps, desc=f"attentive probe, {len(grid)} settings", unit="step", disable=not progress
        ) as bar,
    ):
        for _ in range(settings.epochs):
            for positions in torch.split(torch.randperm(len(tokens), generator=generator), size):
                share = step / rising if step < rising else _cosine((step - rising) / (steps - rising))
                for group in optimizer.param_groups:
                    group["lr"] = share * group["peak"]
                logits = all_logits(pools, tokens[positions].to(device, torch.float32))
                truth = targets[positions].to(device).expand(len(pools), -1)
                loss = F.cross_entropy(logits.flatten(0, 1), truth.flatten(), reduction="sum") / len(positions)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1
                bar.update(1)
    return pools, grid


def _cosine(fraction: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * fraction))


def _tokens(encoder: Encoder, dataset: ImageDataset) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the tokens float32 ``[n,L,D]`` and labels int64 ``[n]`` of every image, batch by batch."""
    labels = labels_of(dataset)
    with encoder.maps(dataset) as batches:
        for maps, index in batches:
            check_finite(maps.flatten(1), f"feature maps of '{dataset.name}'")
            yield maps.flatten(2).transpose(1, 2), labels[positions_of(dataset, index)]


@torch.no_grad()
def _scores(
    pools: Sequence[CapiPool], encoder: Encoder, dataset: ImageDataset, classes: Tensor, name: str, where: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scores ``[G,N,C]``, the labels ``[N]``, and the labels as columns of the scores, on the CPU."""
    logits, labels = [], []
    for tokens, truth in _tokens(encoder, dataset):
        logits.append(all_logits(pools, tokens.to(where)).cpu())
        labels.append(truth)
    truth = torch.cat(labels)
    return torch.cat(logits, 1), truth, class_positions(truth, classes, name)
