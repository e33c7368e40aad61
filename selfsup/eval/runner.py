"""Runs protocols on a subject, and keeps what they find as soon as they have found it."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.eval.features import labels_of
from selfsup.eval.pixels import check_dense
from selfsup.eval.protocols import PROTOCOLS
from selfsup.eval.record import Record
from selfsup.eval.registry import TARGETS, Protocol
from selfsup.eval.results import add_results, peak_memory_mb
from selfsup.eval.subject import Subject
from selfsup.eval.targets import check_kind
from selfsup.registry import nearest
from selfsup.shortage import EVALUATION, ShortageError, lacks_memory, sentence


class PartlyError(ShortageError):
    """There was too little memory for some protocols; the others ran.

    Attributes:
        records: What the others found.
    """

    def __init__(self, message: str, records: list[Record]) -> None:
        super().__init__(message)
        self.records = records


def measure(
    subject: Subject,
    protocols: Sequence[str] | str | None = None,
    *,
    run_dir: str | Path | None = None,
    facts: Mapping[str, Any] | None = None,
) -> list[Record]:
    """Run protocols on one extraction, and return the records.

    A protocol that cannot run (segmentation without masks, kNN without labels) or that fails is named in a warning, and
    the others go on. The records of each are kept before the next begins.

    Args:
        subject: What is judged.
        protocols: As :func:`protocols_of` takes them.
        run_dir: Folder whose ``results.json`` the records are added to; None only returns them.
        facts: What else every record says of how it was measured, such as where the weights come from.

    Raises:
        UserError: There is no such protocol, or none of them can run.
        PartlyError: There was too little memory for some.
    """
    names = protocols_of(protocols, subject.splits.train)
    records: list[Record] = []
    left_out: dict[str, list[str]] = {}  # protocols by the reason
    short = False
    for name in names:
        found: list[Record] = []
        try:
            _run(PROTOCOLS[name], subject, found, dict(facts or {}))
        except Exception as error:
            short = short or lacks_memory(error)
            left_out.setdefault(_reason(error), []).append(name)
        records += found
        if run_dir is not None and found:
            add_results(run_dir, found)
    if left_out and not records:
        raise (ShortageError if short else UserError)(" ".join(left_out))
    if left_out:
        reasons = (f"{', '.join(names)} ({reason.rstrip('.')})" for reason, names in left_out.items())
        note = f"Left out: {'; '.join(reasons)}."
        if short:
            raise PartlyError(note, records)
        warnings.warn(note, stacklevel=2)
    return records


def protocols_of(asked: Sequence[str] | str | None, images: ImageDataset | None = None) -> list[str]:
    """Return the names of protocols.

    Args:
        asked: Some of ``PROTOCOLS``; None is those that take minutes at most (kNN, linear probe, diagnostics), and
            ``"all"`` all but those that run only by name.
        images: What they are to run on: of the protocols that nobody named those are left out whose targets, classes,
            several labels or real values, are not those of the images.

    Raises:
        UserError: There is no such protocol.
    """
    if asked is None:
        return [name for name, entry in PROTOCOLS.items() if entry.plain and _fits(entry, images)]
    if asked == "all":
        return [name for name, entry in PROTOCOLS.items() if not entry.by_name and _fits(entry, images)]
    names = [asked] if isinstance(asked, str) else list(asked)
    for name in names:
        if name not in PROTOCOLS:
            raise UserError(f"There is no protocol '{name}'.{nearest(name, PROTOCOLS)}")
    return names


def _fits(entry: Protocol, images: ImageDataset | None) -> bool:
    kind = "labels" if images is None or images.targets is None else images.targets.kind
    wanted = set(TARGETS) & set(entry.needs)
    return not wanted or kind in wanted


def _run(entry: Protocol, subject: Subject, found: list[Record], facts: dict[str, Any]) -> None:
    """Add the records of a protocol to ``found``."""
    _check_needs(entry, subject)
    before, start = subject.extraction_seconds, time.perf_counter()
    for record in entry.run(subject, subject.config.of(entry)):
        seconds = time.perf_counter() - start - (subject.extraction_seconds - before)
        cost = {"seconds": round(seconds, 3), "peak_memory_mb": round(peak_memory_mb(), 1)}
        how = {**subject.how, **record.how, **facts}
        whole = replace(record, protocol=entry.name, how=how, found={**cost, **record.found})
        whole.check()
        found.append(whole)


def _check_needs(entry: Protocol, subject: Subject) -> None:
    """Look whether a protocol can run before anything is computed for it.

    Raises:
        UserError: The data or the network lack something it needs.
    """
    if "network" in entry.needs:
        _ = subject.network
    if "masks" in entry.needs:
        check_dense(subject.encoder, subject.splits.train)
    elif "dense" in entry.needs and not hasattr(subject.network, "forward_dense"):
        raise UserError(
            "backbone: the network gives one feature an image and no map (forward_dense); take a timm backbone."
        )
    if "labels" in entry.needs:
        labels_of(subject.splits.train)
    for kind in {"multilabel", "real"} & set(entry.needs):
        check_kind(subject.splits.train, kind)


def _reason(error: Exception) -> str:
    """Say why a protocol could not go on; of what nobody foresaw also where."""
    if lacks_memory(error) and not isinstance(error, UserError):
        return sentence("the evaluation", error, EVALUATION)
    if isinstance(error, UserError | torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, ValueError) and Path(place.filename).parent.name == "functional":
        return str(error)  # a sentence on what cannot be measured
    message = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {message}"
