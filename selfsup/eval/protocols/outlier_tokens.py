"""Outlier tokens: patches whose norm is far beyond that of the others, and which say nothing of their place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from selfsup.eval.features import check_finite, positions_of
from selfsup.eval.record import FRACTION, Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject, evenly
from selfsup.eval.tokens import has_class_token, transformer_of
from selfsup.nn.tokens import token_grid
from selfsup.settings import setting
from selfsup.unit_range import shown_channels

BINS = 48
SHOWN = 6  # images in the figure


@dataclass
class OutlierTokensSettings:
    """Which tokens are called outliers.

    Attributes:
        deviations: Those whose norm is above the median of all patches at that depth by more than so many median
            absolute deviations.
        norm: A fixed norm in place of that rule, such as 150, the authors' for DINOv2-g; None is the rule.
        images: Most training images that are looked at, spaced evenly.
        batch_size: Images in a forward pass.
    """

    deviations: float = setting(6.0, above=0)
    norm: float | None = setting(None, above=0)
    images: int = setting(256, least=1)
    batch_size: int = setting(32, least=1)


@protocol("outlier_tokens", OutlierTokensSettings, needs=("network",), shown=("layer",))
def evaluate(subject: Subject, settings: OutlierTokensSettings) -> Iterator[Record]:
    """Share of the patch tokens of a vision transformer whose norm is far beyond the others', after every block.

    Large networks that were trained long keep what they know of the whole image in a few patches of plain background,
    which spoils maps; registers take that over (Darcet et al., "Vision Transformers Need Registers", arXiv:2309.16588).
    Norms are those of a block's output, before the final norm, which would make them alike. ``outlier_share`` is that
    of patches beyond the threshold, and ``norm_ratio``, in the last block, the largest norm over the median. Records
    say how many registers the network has, so that two runs show what these change.
    """
    backbone = transformer_of(subject.network)
    images = evenly(subject.splits.train, settings.images)
    network: Any = backbone.network
    depth = len(network.blocks)
    prefix, patches, index = [], [], []
    encoder = replace(subject.encoder, batch_size=settings.batch_size)
    with encoder.passes(images, "norms of tokens") as batches:
        for prepared, batch in batches:
            tokens = backbone.forward_tokens(prepared, layers=range(depth), normalize_layers=False).layers
            patches.append(torch.stack([layer.patches.float().norm(dim=-1) for layer in tokens]).cpu())
            prefix.append(tokens[-1].prefix.float().norm(dim=-1).cpu())
            index.append(batch.index)
    norms, own = torch.cat(patches, 1), torch.cat(prefix)
    check_finite(norms.flatten(0, 1), f"tokens of '{images.name}'")
    rows, columns = token_grid(network, images.image_size)
    classes = int(has_class_token(backbone))
    rule = f"above {settings.norm:g}" if settings.norm else f"median + {settings.deviations:g} MAD"
    how: dict[str, Any] = {"images": norms.shape[1], "map_size": [rows, columns], "rule": rule}
    how["registers"] = own.shape[1] - classes
    for number, layer in enumerate(norms):
        place = {"layer": f"blocks.{number}", "depth": number, "primary": number == depth - 1, **how}
        limit, middle = threshold(layer, settings), median(layer)
        beyond = layer > limit
        found: dict[str, Any] = {"threshold": limit, "median": middle, "largest": float(layer.max())}
        if number == depth - 1:
            found["places"] = beyond.double().mean(0).view(rows, columns).tolist()
            found["histogram"] = histogram(layer)
            found["prefix_norms"] = [median(token) for token in own.T]
            ratio = found["largest"] / middle if middle > 0 else 1.0
            yield Record(split="train", metric="norm_ratio", value=ratio, how=place)
        value = float(beyond.double().mean())
        yield Record(split="train", metric="outlier_share", value=value, unit=FRACTION, how=place, found=found)
    chosen = torch.linspace(0, norms.shape[1] - 1, min(SHOWN, norms.shape[1])).round().long()
    which = positions_of(images, torch.cat(index)[chosen])

    def shown() -> TokenNorms:
        pictures = encoder.prepared(images.read(which), images.image_size, images.channels)
        return TokenNorms(shown_channels(pictures), norms[-1, chosen].view(-1, rows, columns), limit)

    subject.shown["outlier_tokens"] = shown


@dataclass(frozen=True)
class TokenNorms:
    """Images and the norms of their patches.

    Attributes:
        images: float ``[N,C,H,W]`` in [0, 1].
        norms: float ``[N,h,w]``, of the last block.
        threshold: From which a patch is an outlier.
    """

    images: Tensor
    norms: Tensor
    threshold: float


def threshold(norms: Tensor, settings: OutlierTokensSettings) -> float:
    """Return the norm beyond which a token is an outlier: that of the settings, or ``median + d · MAD`` of all."""
    if settings.norm is not None:
        return settings.norm
    middle = median(norms)
    return middle + settings.deviations * median((norms - middle).abs())


def median(values: Tensor) -> float:
    """Return the median of all values; of two in the middle the mean."""
    ordered = values.double().flatten().sort().values
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)


def histogram(values: Tensor) -> dict[str, list[float]]:
    """Return the numbers of values in bins of one width from the smallest to the largest, and the edges of these."""
    low, high = float(values.min()), float(values.max())
    high = high if high > low else low + 1.0
    counts = torch.histc(values.double(), BINS, low, high)
    return {"edges": torch.linspace(low, high, BINS + 1).tolist(), "counts": counts.tolist()}
