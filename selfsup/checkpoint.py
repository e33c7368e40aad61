"""Checkpoints: written whole or not at all, read without executing anything that is in them."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor

from selfsup import __version__
from selfsup.errors import UserError, reason_of
from selfsup.imports import recall
from selfsup.settings.checkpoints import no_checkpoint
from selfsup.shortage import machine_lacks_memory
from selfsup.writing import replacing

#: Key of a checkpoint under which everything stands that Lightning does not know: how to build the network again.
INFO = "selfsup"

#: Of what a checkpoint holds and what it means; raised when earlier versions would read a later one wrongly. What has
#: no number was written before there was one, and is format 0. All formats up to this one are read.
FORMAT = 1


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's way to the disk: a checkpoint replaces the one before only when it is complete."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write beside the target, flush to the disk, then rename.

        Raises:
            UserError: The disk is full or the folder cannot be written. The checkpoint before is untouched.
        """
        advice = "make room or choose another run_dir; the checkpoint before it, if there is one, is unharmed"
        with replacing(path, advice) as draft:
            torch.save(checkpoint, draft)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: Any = None
    ) -> dict[str, Any]:
        """Read a checkpoint; always with ``weights_only``, whatever the caller says."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Give a checkpoint a second name; the target is whole at every moment, and takes no room where links are possible.

    Raises:
        UserError: It cannot be written.
    """
    draft = target.with_name(f".{target.name}.new")
    try:
        draft.unlink(missing_ok=True)
        try:
            os.link(source, draft)
        except OSError:  # a file system without links
            shutil.copyfile(source, draft)
        os.replace(draft, target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UserError(
            f"The checkpoint {target} could not be written ({error.strerror or error}); make room."
        ) from error


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint file of a run folder, or ``path`` itself when it is a file.

    Raises:
        UserError: There is none.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        last = path / "checkpoints" / "last.ckpt"
        if not last.is_file():
            raise UserError(f"{path} holds no checkpoints/last.ckpt; give a run folder or a .ckpt file.")
        return last
    if not path.is_file():
        raise no_checkpoint(path)
    return path


def run_of(checkpoint: Path) -> Path:
    """Return the run folder that a checkpoint file belongs to, or its own folder when it lies outside a run."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint of this toolkit onto the CPU.

    Raises:
        UserError: It is missing, truncated or incomplete, holds code (refused, not executed), or is not one of ours.
    """
    file = find_checkpoint(Path(path))
    content = read_tensors(file)
    if not is_checkpoint(content, file):
        raise UserError(f"{file} is a file of tensors but no checkpoint of selfsup.")
    recall(run_of(file))  # it may hold a network or a method of the user's own
    return cast(dict[str, Any], content)


def is_checkpoint(content: Any, file: Path) -> bool:
    """Return whether the content of a file is a checkpoint of this toolkit.

    Raises:
        UserError: It is one, and of a later format, or something that the network is built from is missing or is not
            what it must be.
    """
    if not isinstance(content, Mapping) or INFO not in content:
        return False
    info = content[INFO]
    found: Any = info.get("format", 0) if isinstance(info, Mapping) else 0
    if not _is_count(found) or found > FORMAT:
        raise UserError(
            f"{file} is of the checkpoint format {found}, written by selfsup {info.get('version', 'of a later day')}, "
            f"and selfsup {__version__} reads formats up to {FORMAT}; open it with that version or a later one."
        )
    for *path, right in _NEEDED:
        found = content
        for key in path:
            found = found.get(key) if isinstance(found, Mapping) else None
        if not right(found):
            what = "lacks" if found is None else "holds something else as"
            raise UserError(f"{file} is an incomplete checkpoint of selfsup: it {what} {'.'.join(path)}.")
    return True


def stamp() -> dict[str, Any]:
    """Return what a checkpoint says of its own format, and of the version that wrote it."""
    return {"format": FORMAT, "version": __version__}


def start_facts(info: Mapping[str, Any]) -> dict[str, str]:
    """Return what records say of the weights that a training started from, by what its checkpoint keeps of it."""
    start = info.get("start")
    return {} if start is None else {"started_from": start["name"], "started_from_digest": start["digest"]}


def weights_of(state: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    """Return the weights of one module out of those of a whole method."""
    prefix = f"{module}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def digest_of(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of weights, over names, types, shapes and values in the order of the names."""
    found = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        found.update(f"{key} {value.dtype} {tuple(value.shape)};".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _is_size(value: Any) -> bool:
    return _is_count(value) or (isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_count, value)))


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(v, int | float) for v in value)


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _is_settings(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


#: Where a checkpoint holds what a network is built from, and what each must be.
_NEEDED: tuple[tuple[Any, ...], ...] = (
    ("state_dict", _is_state),
    (INFO, "config", _is_settings),
    (INFO, "config", "backbone", _is_settings),
    (INFO, "config", "backbone", "name", lambda value: isinstance(value, str)),
    (INFO, "config", "method", "name", lambda value: isinstance(value, str)),
    (INFO, "config", "data", "name", lambda value: isinstance(value, str)),
    (INFO, "config", "data", "image_size", _is_size),
    (INFO, "in_channels", _is_count),
    (INFO, "mean", _are_numbers),
    (INFO, "std", _are_numbers),
    (INFO, "epochs_done", _is_count),
)


def read_tensors(file: Path) -> Any:
    """Read a file that ``torch.save`` or safetensors wrote onto the CPU: tensors and plain values, never code.

    Every part is held against the checksum that was written with it, at about a gigabyte a second.

    Raises:
        UserError: It is truncated, a part of it has changed since it was written, or it holds code (refused, not
            executed).
    """
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is not a safetensors file, or is truncated ({reason_of(error)}).") from error
    try:
        # Namespaces of command-line arguments lie in many published checkpoints; to make one again runs no code
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only" in str(error) or "Unsupported" in str(error):
            raise UserError(
                f"{file} holds more than tensors and plain values and is refused, as loading it could run code."
            ) from error
        raise UserError(f"{file} is not a checkpoint, or a damaged one.") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        if machine_lacks_memory(error, file.stat().st_size):
            raise
        raise UserError(f"{file} is not a checkpoint, or is truncated ({reason_of(error)}).") from error
    damaged = _damaged_part(file)
    if damaged is not None:
        raise UserError(f"{file} is damaged: {damaged} is not what was written; take another checkpoint or copy.")
    return content


def _damaged_part(file: Path) -> str | None:
    """Return the first part of a file of ``torch.save`` that does not match its checksum; torch does not look at them.

    Files of old versions of torch, and those written with ``set_crc32_options(False)``, have none.
    """
    if not zipfile.is_zipfile(file):
        return None
    part = None
    try:
        with zipfile.ZipFile(file) as parts:
            for part in parts.infolist():
                # torch compresses nothing; what is compressed may be endless
                if part.CRC and part.compress_type == zipfile.ZIP_STORED:
                    with parts.open(part) as content:
                        while content.read(2**20):
                            pass
    except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        return reason_of(error) if part is None else f"its part {part.filename}"
    return None
