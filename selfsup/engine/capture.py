"""A step that went wrong, in one file: all that is needed to take it again, anywhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfsup.checkpoint import read_tensors
from selfsup.errors import UserError
from selfsup.imports import recall
from selfsup.types import Batch
from selfsup.writing import replacing

#: Its name in a run's folder. A later one takes its place: there is one, about as large as the weights and a batch.
FILE = "not_finite.pt"

_KEY, _VERSION = "selfsup_capture", 1


@dataclass(frozen=True)
class Capture:
    """What a step is a function of, and what came of it.

    Attributes:
        info: How the method is built: what checkpoints keep of it.
        state: Weights and buffers before the step.
        batch: Its images as the loader gave them (uint8, no views), labels, indexes, sizes; on the CPU.
        step: Optimiser steps before it.
        epoch, batch_idx: Where it lies in the training.
        total_steps: Of the whole training.
        threads: Of the CPU: sums may be split among them.
        device: Kind of device that took it.
        loss: What the run saw.
        place: The first place that was not finite, in words.
    """

    info: dict[str, Any]
    state: dict[str, Tensor]
    batch: Batch
    step: int
    epoch: int
    batch_idx: int
    total_steps: int
    threads: int
    device: str
    loss: Tensor
    place: str

    def save(self, path: Path) -> None:
        """Write it whole or not at all.

        Raises:
            UserError: It cannot be written.
        """
        content = {field.name: getattr(self, field.name) for field in fields(self)} | {"batch": asdict(self.batch)}
        with replacing(path) as draft:
            torch.save({_KEY: _VERSION, **content}, draft)


def find_capture(path: str | Path) -> Path:
    """Return the file of a run folder, or ``path`` itself where it is one.

    Raises:
        UserError: There is none.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file /= FILE
    if not file.is_file():
        raise UserError(f"There is no {file}: a run leaves one where its numbers stop being finite.")
    return file


def read_capture(file: Path) -> Capture:
    """Read one; nothing in it is executed.

    Raises:
        UserError: It is damaged, of another version, or something else.
    """
    content = read_tensors(file)
    if not isinstance(content, dict) or content.get(_KEY) != _VERSION:
        raise UserError(f"{file} is no captured step of this version; give a run folder or its {FILE}.")
    try:
        values = {field.name: content[field.name] for field in fields(Capture)}
        captured = Capture(**values | {"batch": Batch(**values["batch"])})
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} is an incomplete captured step ({error}).") from error
    recall(file.parent)  # its network or its method may be one of the user's own
    return captured
