"""Which tokens to read: kNN and linear probe on class token, mean of the patches, both, and the last blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.eval.features import FeatureSet
from selfsup.eval.linear import linear_probe
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject, evenly, extract_splits
from selfsup.eval.tokens import TokenSummaries, transformer_of
from selfsup.eval.voting import knn_grid, search_settings
from selfsup.settings import setting


@dataclass
class TokenReadoutsSettings:
    """What is read.

    Attributes:
        blocks: Last blocks that are put side by side, at most those there are.
        images: Most training images, spaced evenly; the tokens of so many are kept in memory.
    """

    blocks: int = setting(4, least=1)
    images: int = setting(20_000, least=1)


@protocol("token_readouts", TokenReadoutsSettings, needs=("network", "labels"), shown=("readout", "classifier"))
def evaluate(subject: Subject, settings: TokenReadoutsSettings) -> Iterator[Record]:
    """kNN and linear accuracy of each way to make one feature of a transformer's tokens, side by side.

    ``class`` is the class token behind the final norm, ``patches`` the mean of the patch tokens, ``class+patches`` both
    side by side, ``class_last_4`` and ``patches_last_4`` those of the last four blocks, each behind the final norm.
    Methods that teach no class token (masked images, I-JEPA) are judged by the patches: read by their class token they
    can look several times worse than they are. The classifiers are the first of ``eval.knn.k`` and the probe of
    ``eval.linear_probe``. For kNN the parts of a feature are brought to length 1, so that each counts the same. Records
    have the accuracy on the hold-out, where there is one, by which a reader chooses.
    """
    config = subject.config
    backbone = transformer_of(subject.network)
    network: Any = backbone.network
    summaries = TokenSummaries(backbone, min(settings.blocks, len(network.blocks)))
    splits = replace(subject.splits, train=evenly(subject.splits.train, settings.images))
    features = extract_splits(replace(subject.encoder, network=summaries), splits)
    split, _ = features.scored
    held = features.holdout if split == "test" else None
    train, scored = (readouts(summaries, part.features) for part in (features.train, features.scored[1]))
    unseen = None if held is None else readouts(summaries, held.features)
    votes, probe = config.of("knn"), config.of("linear_probe")
    k, temperature = votes.k[0], votes.temperatures[0]
    for name, parts in train.items():
        how = {"readout": name, **features.how, "dim": parts.flatten(1).shape[1]}

        def part(values: Tensor, of: FeatureSet, unit: bool) -> FeatureSet:
            return FeatureSet((F.normalize(values, dim=2) if unit else values).flatten(1), of.labels, of.index)

        bank = part(parts, features.train, True)
        asked = {"value": part(scored[name], features.scored[1], True)}
        asked |= {} if held is None or unseen is None else {"holdout_accuracy": part(unseen[name], held, True)}
        accuracy = {
            what: knn_grid(bank, one, [k], [temperature], weights=("distance",), **search_settings(config))[0].accuracy
            for what, one in asked.items()
        }
        value = accuracy.pop("value")
        own: dict[str, Any] = {"classifier": "knn", "k": k, "temperature": temperature, "index": config.index}
        yield Record(split=split, metric="top1", value=value, how=how | own, found=accuracy)
        result = linear_probe(
            part(parts, features.train, False),
            part(scored[name], features.scored[1], False),
            holdout=None if held is None or unseen is None else part(unseen[name], held, False),
            learning_rates=probe.learning_rates,
            weight_decays=probe.weight_decays,
            epochs=probe.epochs,
            batch_size=probe.batch_size,
            seed=subject.seed,
            device=subject.encoder.device,
            progress=subject.encoder.progress,
        )
        own = {"classifier": "linear", "epochs": probe.epochs, "selected_on": result.selected_on}
        found = {"holdout_accuracy": result.chosen.holdout_accuracy, "chosen": asdict(result.chosen)}
        yield Record(split=split, metric="top1", value=result.accuracy, how=how | own, found=found)


def readouts(summaries: TokenSummaries, features: Tensor) -> dict[str, Tensor]:
    """Return every readout by name as its parts side by side, ``[N,parts,D]``; without a class token those of patches.

    Args:
        summaries: What the features are of.
        features: float ``[N, …]``, its output.
    """
    classes, patches = summaries.split(features)
    blocks = summaries.blocks
    found: dict[str, Tensor] = {}
    if classes.shape[1]:
        found["class"] = classes[:, -1:]
    found["patches"] = patches[:, -1:]
    if classes.shape[1]:
        found["class+patches"] = torch.cat([classes[:, -1:], patches[:, -1:]], 1)
    if blocks > 1:
        found |= {f"class_last_{blocks}": classes} if classes.shape[1] else {}
        found[f"patches_last_{blocks}"] = patches
    return found
