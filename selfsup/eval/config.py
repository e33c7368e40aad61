"""Settings of the evaluation: what all protocols share, and one dataclass a protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from selfsup.errors import UserError
from selfsup.eval.registry import Protocol
from selfsup.registry import nearest
from selfsup.settings import setting
from selfsup.settings.moved import MOVED, tell_moved


@dataclass
class EvalConfig:
    """How a checkpoint is evaluated; :func:`eval_config` adds a field for the settings of each protocol.

    Attributes:
        index: How neighbours are searched: ``flat`` (exact), ``ivf``, ``hnsw`` or ``half`` (see ``search``). Records of
            another index than ``flat`` say its recall, the share of the true neighbours it finds.
        index_effort: How much of an approximate index is visited; more raises its recall and takes longer.
        search_memory_mb: Most memory of an index; a larger bank is searched in blocks.
        duplicate_similarity: Cosine similarity from which ``selfsup neighbours`` calls two images near-duplicates; None
            follows the features, see ``audit``.
        label_fraction: Share of the training labels that ``linear_probe``, ``logistic``, ``ridge`` and ``fine_tune``
            see: the same number of images of every class, drawn with the seed.
        seeds: Runs of each of these, with seeds from ``seed`` on; records say their mean and standard deviation.
        batch_size: Images in a forward pass of the backbone. It changes the speed, not the result.
        precision: Of the forward pass that extracts pooled features: ``32``, ``bf16`` or ``16`` by autocast, or
            ``auto``: bf16 on a GPU that has it, 32 elsewhere. Records of another precision than 32 say it.
        resize: Short side that images are resized to before the centre of ``data.image_size`` is cut, as 256 for 224 in
            the papers. None is ``data.image_size``: the whole central square.
        cache: Keep the features in the run folder, so that a second evaluation of the same weights skips extraction.
        figures: Draw the figures.
    """

    index: str = "flat"
    index_effort: float = 1.0
    search_memory_mb: int = 512
    duplicate_similarity: float | None = None
    label_fraction: float = 1.0
    seeds: int = 1
    batch_size: int = 256
    precision: str = "auto"
    resize: int | None = setting(None, least=1)
    cache: bool = True
    figures: bool = True

    def of(self, protocol: Protocol | str) -> Any:
        """Return the settings of a protocol, or None where it has none."""
        from selfsup.eval.protocols import PROTOCOLS  # whose files import this one

        entry = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
        found = getattr(self, entry.key, None)
        return entry.settings() if found is None and entry.settings is not None else found


def eval_config(**values: Any) -> EvalConfig:
    """Build the settings of an evaluation: the shared ones, and those of every protocol that is registered now.

    Args:
        values: What differs from the defaults: ``eval_config(batch_size=64, knn={"k": [5]})``. The settings of a
            protocol are a dictionary or its dataclass; names that settings had before (``knn_k``) do, with a note.

    Raises:
        UserError: There is no such setting.
    """
    nested = protocol_settings()
    config = _with_fields(tuple(nested.items()))()
    for name, value in values.items():
        if f"eval.{name}" in MOVED:
            tell_moved(f"eval.{name}")
            for _, key, field in (place.split(".") for place in MOVED[f"eval.{name}"]):
                setattr(getattr(config, key), field, value)
        elif name in nested and isinstance(value, Mapping):
            _set(getattr(config, name), value, f"eval.{name}.")
        else:
            _set(config, {name: value}, "eval.")
    return config


def protocol_settings() -> dict[str, type[Any]]:
    """Return the settings of every protocol that is registered now, by their key below ``eval``."""
    from selfsup.eval.protocols import PROTOCOLS

    return {entry.key: entry.settings for entry in PROTOCOLS.values() if entry.settings is not None}


@cache
def _with_fields(nested: tuple[tuple[str, type[Any]], ...]) -> type[EvalConfig]:
    """Return the dataclass with a further field for each key; the same one for the same protocols."""
    fields = [(key, settings, dataclasses.field(default_factory=settings)) for key, settings in nested]
    return dataclasses.make_dataclass("EvalConfig", fields, bases=(EvalConfig,))


def _set(settings: Any, values: Mapping[str, Any], prefix: str) -> None:
    known = {field.name for field in dataclasses.fields(settings)}
    for name, value in values.items():
        if name not in known:
            meant = nearest(f"{prefix}{name}", [f"{prefix}{one}" for one in known])
            raise UserError(f"There is no setting '{prefix}{name}'.{meant}")
        setattr(settings, name, value)
