"""Files that are written: looked at before work is spent on what goes there, and replaced whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from selfsup.errors import UserError, reason_of
from selfsup.shortage import lacks_memory


def check_output(path: str | Path, setting: str, size: int = 0) -> None:
    """Make sure that a file or folder can be written and finds room, as far as is known now.

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


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], advice: str = "make room, or choose another folder") -> Iterator[Path]:
    """Give a draft beside ``path`` to write to, which takes its place when all went well, and goes otherwise.

    The draft reaches the disk before it is renamed: whenever the machine stops, the file is the old or the new one. One
    process at a time replaces a file: what is read of it inside the block is still there when it is replaced. The draft
    always has the same name, so that what a kill leaves is written over. The folder is made where it is missing.

    Args:
        path: The file.
        advice: What to do where it cannot be written.

    Raises:
        UserError: It cannot be written; the old one is untouched.
    """
    target = Path(path)
    draft = target.with_name(f".{target.name}.new")
    with writing(target, advice):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = _open_alone(draft)
        try:
            yield draft
            os.fsync(handle)
            os.replace(draft, target)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], advice: str = "make room, or choose another folder") -> Iterator[None]:
    """Write a file inside, by whatever library.

    Args:
        path, advice: As of :func:`replacing`.

    Raises:
        UserError: It cannot be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
        if lacks_memory(error):
            raise
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise UserError(f"{Path(path)} could not be written ({reason}); {advice}.") from error


def replace_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, as :func:`replacing` does; line ends stay, and what is no Unicode becomes its escape."""
    with replacing(path) as draft:
        draft.write_bytes(text.encode("utf-8", "backslashreplace"))


def _open_alone(draft: Path) -> int:
    """Make the draft and lock it until the descriptor is closed; wait for whoever has it."""
    while True:
        handle = os.open(draft, os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(draft).st_ino == os.fstat(handle).st_ino:
                return handle
        os.close(handle)  # who had it has renamed it
