"""Checkpoints: written whole or not at all, read without executing anything that is in them."""

from __future__ import annotations

import argparse
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from selfsup.errors import UserError
from selfsup.nn import Backbone, BackboneConfig, build_backbone
from selfsup.types import Normalization

#: Key of a checkpoint under which everything stands that Lightning does not know: how to build the network again.
INFO = "selfsup"


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's way to the disk: a checkpoint replaces the one before only when it is complete."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write beside the target, flush to the disk, then rename.

        Raises:
            UserError: The disk is full or the folder cannot be written. The checkpoint before is untouched.
        """
        target = Path(path)
        temporary: str | None = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".saving-", delete=False) as file:
                temporary = file.name
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except (OSError, RuntimeError) as error:
            # torch's writer reports a full disk as a RuntimeError
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise UserError(
                f"The checkpoint {target} could not be written ({error}); make room or choose another run_dir. "
                "The checkpoint before it, if there is one, is unharmed."
            ) from error

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: Any = None
    ) -> dict[str, Any]:
        """Read a checkpoint; always with ``weights_only``, whatever the caller says."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint file of a run folder, or ``path`` itself when it is a file.

    Raises:
        UserError: There is none.
    """
    path = Path(path)
    if path.is_dir():
        last = path / "checkpoints" / "last.ckpt"
        if not last.is_file():
            raise UserError(f"{path} holds no checkpoints/last.ckpt; give a run folder or a .ckpt file.")
        return last
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}; give a run folder or a .ckpt file.")
    return path


def run_of(checkpoint: Path) -> Path:
    """Return the run folder that a checkpoint file belongs to, or its own folder when it lies outside a run."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint of this toolkit onto the CPU.

    Raises:
        UserError: It is missing, truncated, holds code (refused, not executed), or is not one of ours.
    """
    file = find_checkpoint(Path(path))
    content = read_tensors(file)
    if not isinstance(content, dict) or INFO not in content or "state_dict" not in content:
        raise UserError(f"{file} is a file of tensors but no checkpoint of selfsup.")
    return cast(dict[str, Any], content)


def read_tensors(file: Path) -> Any:
    """Read a file that ``torch.save`` wrote onto the CPU: tensors and plain values, nothing that would be executed.

    Raises:
        UserError: It is truncated, or holds code (refused, not executed).
    """
    try:
        # Namespaces of command-line arguments lie in many published checkpoints; to make one again runs no code
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only" in str(error) or "Unsupported" in str(error):
            raise UserError(
                f"{file} holds more than tensors and plain values and is refused, as loading it could run code."
            ) from error
        raise UserError(f"{file} is not a checkpoint, or a damaged one.") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{file} is not a checkpoint, or is truncated ({reason}).") from error


def load_backbone(path: str | Path) -> Backbone:
    """Return the trained backbone of a run folder or checkpoint, in evaluation mode on the CPU.

    Raises:
        UserError: As :func:`read_checkpoint`.
    """
    content = read_checkpoint(path)
    info = content[INFO]
    normalization = Normalization(tuple(info["mean"]), tuple(info["std"]))
    backbone = build_backbone(BackboneConfig(**info["config"]["backbone"]), info["in_channels"], normalization)
    prefix = f"{info.get('backbone', 'backbone')}."
    state = {k.removeprefix(prefix): v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    try:
        backbone.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{path}: the weights do not fit the network it names: {str(error).splitlines()[-1].strip()}"
        ) from error
    return backbone.eval()
