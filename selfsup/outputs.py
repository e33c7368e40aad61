"""Places for results: looked at before work is spent on what goes there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from selfsup.errors import UserError


def check_output(path: str | Path, setting: str, size: int = 0) -> None:
    """Make sure that a file or folder can be written and finds room, as far as can be told now.

    Args:
        path: What will be written; it need not exist.
        setting: What names it, for the message.
        size: Bytes that it will take, as far as they are known.

    Raises:
        UserError: A file is in the way, its folder cannot be written, or the disk has less room.
    """
    place = Path(path).absolute()
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    if there != place and not there.is_dir():
        raise UserError(f"{setting}: {path} cannot be made, as {there} is a file; choose another place.")
    if not os.access(there, os.W_OK):
        raise UserError(f"{setting}: {there} cannot be written; choose another place.")
    free = shutil.disk_usage(there).free
    if size > free:
        raise UserError(
            f"{setting}: {path} takes {size / 1e9:.2g} GB and its disk has {free / 1e9:.2g} GB left; "
            "make room or choose another place."
        )
