"""Decoded and resized images in one file on disk: built once, read by every later epoch without decoding.

A cache is a folder ``NAME-KEY`` below ``data.cache`` with ``images.u8``, the pixels uint8 ``[N,3,S,S]``, and
``about.json``. The key is a hash of the files and of everything that their pixels depend on, so a cache is never out
of date: what changed has another key. It is built in ``NAME-KEY.part``, which is renamed when it is complete; a build
that was killed goes on from the images that it had written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import mmap
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from selfsup.data.decode import VERSION, UndecodableError
from selfsup.data.workers import usable_cores
from selfsup.errors import UserError

IMAGES, ABOUT, JOURNAL = "images.u8", "about.json", "journal.u8"
DECODED, UNDECODABLE = 1, 2  # in the journal; 0 is not done yet
TASK = 16  # images that a thread decodes at a time
SYNC = 2**26  # bytes of pixels that are brought to the disk before the journal says that they are there

logger = logging.getLogger(__name__)


class Pixels:
    """The images of a complete cache, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / ABOUT).read_text("utf-8"))
        reasons = about.get("reasons", ["it could not be decoded when the cache was built"] * len(about["undecodable"]))
        self.undecodable: dict[int, str] = dict(zip(about["undecodable"], reasons, strict=True))
        shape = (about["images"], 3, about["side"], about["side"])
        path = folder / IMAGES
        if path.stat().st_size != np.prod(shape):
            raise UserError(f"data.cache: {path} is damaged; delete {folder}, it will be built again.")
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._images = np.frombuffer(self._map, np.uint8).reshape(shape)
        self._decoded = torch.ones(shape[0], dtype=torch.bool)
        self._decoded[list(self.undecodable)] = False

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return images uint8 ``[n,3,S,S]``, and bool ``[n]``: which of them could be decoded; the others are black."""
        if hasattr(mmap, "MADV_WILLNEED"):  # the disk reads all of them at once, not one after the other
            bytes_each = self._images[0].size
            for row in rows.tolist():
                begin = row * bytes_each // mmap.PAGESIZE * mmap.PAGESIZE
                self._map.madvise(mmap.MADV_WILLNEED, begin, (row + 1) * bytes_each - begin)
        images = torch.empty(len(rows), *self._images.shape[1:], dtype=torch.uint8)
        np.take(self._images, rows.numpy(), axis=0, out=images.numpy(), mode="clip")  # clip: without a second copy
        return images, self._decoded[rows]


def open_cache(
    root: Path, name: str, identity: Iterable[bytes], count: int, side: int, decode: Callable[[int], Tensor]
) -> Pixels:
    """Return the pixels of a split from its cache, which is built first where there is none.

    Processes that ask for the same cache at once wait for the one that builds it.

    Args:
        root: ``data.cache``.
        name: What the folder's name begins with.
        identity: What identifies these images, in the order of the rows.
        count: Number of images.
        side: Side of the square they are brought to.
        decode: Returns the image of a row, uint8 ``[3,side,side]``; raises ``UndecodableError``.

    Raises:
        UserError: The cache cannot be written or read, or a file cannot be read for a reason that may pass.
    """
    libraries = {package: version(package) for package in ("pillow", "torchvision")}
    settings = {"images": count, "side": side, "decoder": VERSION, **libraries}
    folder = root / f"{name}-{digest(chain([json.dumps(settings).encode()], identity))}"
    try:
        if not folder.is_dir():
            root.mkdir(parents=True, exist_ok=True)
            with locked(folder.with_name(f"{folder.name}.lock")):
                if not folder.is_dir():
                    _build(folder, settings, decode)
        return Pixels(folder)
    except OSError as error:
        gigabytes = count * 3 * side**2 / 1e9
        raise UserError(
            f"data.cache: {folder} cannot be written or read ({error.strerror or error}), and takes {gigabytes:.3g} GB "
            "on the disk; free the space, set data.cache to another folder, or to null to decode in every epoch."
        ) from error


def digest(parts: Iterable[bytes]) -> str:
    """Return a hash that identifies these parts."""
    mixed = hashlib.sha256()
    for part in parts:
        mixed.update(len(part).to_bytes(8, "little") + part)
    return mixed.hexdigest()[:32]


def locked(path: Path) -> Any:
    """Take the lock of a cache; the system frees it when its holder dies."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process is building %s; waiting for it", path.stem)
        return lock.acquire()


def _build(folder: Path, settings: dict[str, Any], decode: Callable[[int], Tensor]) -> None:
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(exist_ok=True)
    if not (part / ABOUT).exists():
        _fill(part, settings, decode)
    (part / JOURNAL).unlink(missing_ok=True)
    part.rename(folder)
    logger.info("the decoded images are kept in %s (%.3g GB)", folder, (folder / IMAGES).stat().st_size / 1e9)


def _fill(part: Path, settings: dict[str, Any], decode: Callable[[int], Tensor]) -> None:
    count, side = settings["images"], settings["side"]
    bytes_each = 3 * side**2
    images = os.open(part / IMAGES, os.O_RDWR | os.O_CREAT, 0o666)
    journal = os.open(part / JOURNAL, os.O_RDWR | os.O_CREAT, 0o666)
    # Threads, as the decoders run outside Python's lock; each writes its rows, and this thread keeps the journal
    pool = ThreadPoolExecutor(usable_cores())
    try:
        _reserve(images, count * bytes_each)  # a full disk is found out now, not after hours
        _reserve(journal, count)
        done = bytearray(os.pread(journal, count, 0))
        missing = [row for row, state in enumerate(done) if state not in (DECODED, UNDECODABLE)]

        reasons: dict[int, str] = {}

        def work(rows: list[int]) -> list[tuple[int, int]]:
            return [(row, _write_row(images, row, bytes_each, decode, reasons)) for row in rows]

        tasks = [missing[begin : begin + TASK] for begin in range(0, len(missing), TASK)]
        written: list[tuple[int, int]] = []
        with tqdm(total=count, initial=count - len(missing), desc=f"caching {part.stem}", unit="image") as bar:
            try:
                for states in pool.map(work, tasks):
                    written += states
                    bar.update(len(states))
                    if len(written) * bytes_each >= SYNC:
                        _note(images, journal, written, done)
            finally:
                _note(images, journal, written, done)
        undecodable = [row for row, state in enumerate(done) if state == UNDECODABLE]
        kept = {
            "undecodable": undecodable,
            "reasons": [reasons.get(row) or _reason(row, decode) for row in undecodable],
        }
        about = json.dumps(settings | kept, indent=1) + "\n"
        draft = part / f"{ABOUT}.draft"
        with draft.open("w", encoding="utf-8") as file:
            file.write(about)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(part / ABOUT)
    finally:
        pool.shutdown(cancel_futures=True)
        os.close(images)
        os.close(journal)


def _write_row(file: int, row: int, bytes_each: int, decode: Callable[[int], Tensor], reasons: dict[int, str]) -> int:
    try:
        image = decode(row).contiguous().numpy().reshape(-1)
        state = DECODED
    except UndecodableError as error:
        if _may_pass(error):
            raise UserError(f"data.cache: {error}, which may pass; start again, the images so far are kept.") from error
        image, state, reasons[row] = np.zeros(bytes_each, np.uint8), UNDECODABLE, error.reason
    _write(file, image.data, row * bytes_each)
    return state


def _reason(row: int, decode: Callable[[int], Tensor]) -> str:
    """Return why an image cannot be decoded that a build found out which was killed: it has kept only that it is so."""
    try:
        decode(row)
    except UndecodableError as error:
        return error.reason
    return "it could not be decoded when the cache was built"


def _may_pass(error: BaseException | None) -> bool:
    """Whether reading failed for a reason that says nothing about the file, and must not be remembered."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, OSError) and error.errno is not None:  # Pillow's own have no number
            return error.errno not in (errno.ENOENT, errno.EACCES, errno.EISDIR)
        error = error.__cause__
    return False


def _write(file: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def _reserve(file: int, size: int) -> None:
    """Give the file its size, and the space on the disk."""
    before = os.fstat(file).st_size
    try:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file, 0, size)
    except OSError as error:
        os.ftruncate(file, before)
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot reserve
            raise
    os.ftruncate(file, size)


def _note(images: int, journal: int, written: list[tuple[int, int]], done: bytearray) -> None:
    """Say in the journal what was written, once the pixels have reached the disk."""
    os.fsync(images)
    for row, state in written:
        done[row] = state
        _write(journal, memoryview(bytes([state])), row)
    written.clear()
