"""Decoded and resized images in one file on disk: built once, read by every later epoch without decoding.

A cache is a folder ``NAME-KEY`` below ``data.cache`` with ``images.u8``, the bytes of the pixels ``[N,C,S,S]``, and
``about.json``. Where images differ in shape, ``shapes.i32`` holds height and width of each, and ``images.u8`` one
``[C,h,w]`` after the other. The key is a hash of the files and of everything that their pixels depend on, so a cache is
never out of date: what changed has another key. It is built in ``NAME-KEY.part``, which is renamed when it is complete;
a build that was killed goes on from the images that it had written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import mmap
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from selfsup.bars import progress_bar
from selfsup.data.base import Read
from selfsup.data.decode import VERSION
from selfsup.data.form import PHOTOGRAPHS, Form, UndecodableError
from selfsup.data.workers import usable_cores
from selfsup.errors import UserError, from_json
from selfsup.ragged import pack

IMAGES, SHAPES, ABOUT, JOURNAL = "images.u8", "shapes.i32", "about.json", "journal.u8"
DECODED, UNDECODABLE = 1, 2  # in the journal; 0 is not done yet
PACKAGES = ("imagecodecs", "pillow_heif", "pydicom", "tifffile")  # that read images and may be missing
INSTALL = "pip install"  # in the reason of an image that is left out as one is missing
TASK = 16  # images that a thread decodes at a time
SYNC = 2**26  # bytes of pixels that are brought to the disk before the journal says that they are there

logger = logging.getLogger(__name__)


class Pixels:
    """The images of a complete cache, mapped into memory."""

    def __init__(self, folder: Path, extent: tuple[int, int], form: Form = PHOTOGRAPHS) -> None:
        count, side = extent
        about = _read_about(folder, count)
        self.undecodable: dict[int, str] = dict(zip(about["undecodable"], about["reasons"], strict=True))
        self._shapes = _read_shapes(folder, count, side)
        self._begins = _begins(self._shapes, form)
        self._path = folder / IMAGES
        if not self._path.is_file() or self._path.stat().st_size != self._begins[-1]:
            raise _damaged(self._path)
        with self._path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._form = form
        self._flat = np.frombuffer(self._map, np.uint8)
        square = bool((self._shapes == side).all())
        self._squares = self._flat.view(form.depth).reshape(count, form.channels, side, side) if square else None
        self._decoded = torch.ones(count, dtype=torch.bool)
        self._decoded[list(self.undecodable)] = False

    def read(self, rows: Tensor) -> Read:
        """Return images, and bool ``[n]``: which of them could be decoded; the others are black.

        Raises:
            UserError: The file is not as long as it was.
        """
        if self._map.size() != len(self._map):  # to read what is no longer there would end the process (SIGBUS)
            raise _damaged(self._path)
        if hasattr(mmap, "MADV_WILLNEED"):  # the disk reads all of them at once, not one after the other
            for row in rows.tolist():
                begin, end = (int(place) for place in self._begins[row : row + 2])
                page = begin // mmap.PAGESIZE * mmap.PAGESIZE
                self._map.madvise(mmap.MADV_WILLNEED, page, end - page)
        if self._squares is not None:
            images = torch.empty(len(rows), *self._squares.shape[1:], dtype=self._form.dtype)
            np.take(self._squares, rows.numpy(), axis=0, out=images.numpy(), mode="clip")  # clip: without a second copy
            return Read(images, self._decoded[rows])
        image, size = pack([self._image(row) for row in rows.tolist()])
        return Read(image, self._decoded[rows], size)

    def _image(self, row: int) -> Tensor:
        begin, end = self._begins[row : row + 2]
        height, width = self._shapes[row]
        values = self._flat[begin:end].copy().view(self._form.depth)
        return torch.from_numpy(values.reshape(self._form.channels, height, width))


def open_cache(
    root: Path,
    name: str,
    identity: Iterable[bytes],
    extent: tuple[int, int],
    decode: Callable[[int], Tensor],
    shape: Callable[[int], tuple[int, int]] | None = None,
    form: Form = PHOTOGRAPHS,
) -> Pixels:
    """Return the pixels of a split from its cache, which is built first where there is none.

    Processes that ask for the same cache at once wait for the one that builds it.

    Args:
        root: ``data.cache``.
        name: What the folder's name begins with.
        identity: What identifies these images, in the order of the rows.
        extent: Number of images, and the length of their shorter side.
        decode: Returns the image of a row, ``[C,h,w]``; raises ``UndecodableError``.
        shape: Returns height and width of the image of a row, before any is decoded, and raises as ``decode``; None
            where all are squares.
        form: Channels and type of the images; what it says beyond these is part of ``identity``.

    Raises:
        UserError: The cache cannot be written or read, or a file cannot be read for a reason that may pass.
    """
    count, side = extent
    libraries = {package: version(package) for package in ("pillow", "torchvision")}
    settings = {"images": count, "side": side, "decoder": VERSION, **libraries}
    folder = root / f"{name}-{digest(chain([json.dumps(settings).encode()], identity))}"
    try:
        if not folder.is_dir() or _lacked_a_package(folder, count):
            root.mkdir(parents=True, exist_ok=True)
            with locked(folder.with_name(f"{folder.name}.lock")):
                if folder.is_dir() and _lacked_a_package(folder, count):
                    logger.warning("%s was built without a package that is here now, and is built again", folder)
                    shutil.rmtree(folder)
                if not folder.is_dir():
                    _build(folder, settings, Decode(decode, shape, form))
        return Pixels(folder, extent, form)
    except OSError as error:
        gigabytes = int(_begins(_read_shapes(_part(folder), count, side), form)[-1]) / 1e9
        raise UserError(
            f"data.cache: {folder} cannot be written or read ({error.strerror or error}), and takes {gigabytes:.3g} GB "
            "on the disk; free the space, set data.cache to another folder, or to null to decode in every epoch."
        ) from error


def _lacked_a_package(folder: Path, count: int) -> bool:
    """Whether images are left out of a cache for want of a package, and other packages were there than now."""
    about = _read_about(folder, count)
    return any(INSTALL in reason for reason in about["reasons"]) and about.get("packages") != _packages()


def _read_about(folder: Path, count: int) -> dict[str, Any]:
    """Return what a complete cache says of itself, with the rows that could not be decoded and the reason of each.

    Raises:
        UserError: It says something else.
    """
    path = folder / ABOUT
    if not path.is_file():  # of a pipe nobody may ever write the end
        raise _damaged(path)
    try:
        about = from_json(path.read_bytes())
        rows = about["undecodable"]
        about.setdefault("reasons", ["it could not be decoded when the cache was built"] * len(rows))
        sound = len(rows) == len(about["reasons"]) and all(isinstance(reason, str) for reason in about["reasons"])
        sound = sound and all(type(row) is int and 0 <= row < count for row in rows)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path) from error
    if not sound:
        raise _damaged(path)
    return dict(about)


def _damaged(path: Path) -> UserError:
    return UserError(f"data.cache: {path} is damaged; delete {path.parent}, it will be built again.")


def _packages() -> list[str]:
    return [package for package in PACKAGES if find_spec(package) is not None]


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


class Decode(NamedTuple):
    """How the image of a row and its shape are read, and in which form; as ``open_cache`` takes them."""

    image: Callable[[int], Tensor]
    shape: Callable[[int], tuple[int, int]] | None
    form: Form


def _build(folder: Path, settings: dict[str, Any], decode: Decode) -> None:
    part = _part(folder)
    part.mkdir(exist_ok=True)
    if not (part / ABOUT).exists():
        if decode.shape is not None and not (part / SHAPES).exists():
            _measure(part, settings, decode.shape)
        _fill(part, settings, decode)
    (part / JOURNAL).unlink(missing_ok=True)
    part.rename(folder)
    logger.info("the decoded images are kept in %s (%.3g GB)", folder, (folder / IMAGES).stat().st_size / 1e9)


def _part(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.part")


def _measure(part: Path, settings: dict[str, Any], shape: Callable[[int], tuple[int, int]]) -> None:
    """Write the shapes of all images, so that each has its place in the file before any is decoded."""
    count = settings["images"]

    def measured(row: int) -> tuple[int, int]:
        try:
            return shape(row)
        except UndecodableError as error:  # a black square, unless it may be read later
            _refuse_passing(error)
            return settings["side"], settings["side"]

    with ThreadPoolExecutor(usable_cores()) as pool:
        found = pool.map(measured, range(count))
        shapes = list(progress_bar(found, total=count, desc=f"shapes of {part.stem}", unit="image", delay=2))
    _replace(part / SHAPES, np.array(shapes, np.int32).tobytes())


def _replace(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all (NumPy's ``tofile`` says nothing of a disk that is full)."""
    draft = path.with_name(f"{path.name}.draft")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _read_shapes(folder: Path, count: int, side: int) -> np.ndarray[Any, Any]:
    """Return int ``[N,2]``: height and width of each image in a cache or a part of one.

    Raises:
        UserError: The file holds something else.
    """
    path = folder / SHAPES
    if not path.exists():
        return np.full((count, 2), side, np.int32)
    shapes = np.fromfile(path, np.int32) if path.is_file() and path.stat().st_size == 8 * count else np.zeros(0)
    if len(shapes) != 2 * count or (shapes < 1).any():
        raise _damaged(path)
    return shapes.reshape(-1, 2)


def _begins(shapes: np.ndarray[Any, Any], form: Form) -> np.ndarray[Any, Any]:
    """Return int64 ``[N + 1]``: where each image begins in the file, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(form.channels * form.bytes_a_value * shapes.astype(np.int64).prod(1))])


def _fill(part: Path, settings: dict[str, Any], decode: Decode) -> None:
    count = settings["images"]
    shapes = _read_shapes(part, count, settings["side"])
    begins = _begins(shapes, decode.form)
    images = os.open(part / IMAGES, os.O_RDWR | os.O_CREAT, 0o666)
    journal = os.open(part / JOURNAL, os.O_RDWR | os.O_CREAT, 0o666)
    # Threads, as the decoders run outside Python's lock; each writes its rows, and this thread keeps the journal
    pool = ThreadPoolExecutor(usable_cores())
    try:
        _reserve(images, int(begins[-1]))  # a full disk is found out now, not after hours
        _reserve(journal, count)
        done = bytearray(os.pread(journal, count, 0))
        missing = [row for row, state in enumerate(done) if state not in (DECODED, UNDECODABLE)]

        reasons: dict[int, str] = {}

        def work(rows: list[int]) -> list[tuple[int, int]]:
            return [(row, write(row)) for row in rows]

        def write(row: int) -> int:
            image, state = _decoded(row, decode, tuple(shapes[row].tolist()), reasons)
            _write(images, image.contiguous().numpy().reshape(-1).view(np.uint8).data, int(begins[row]))
            return state

        tasks = [missing[begin : begin + TASK] for begin in range(0, len(missing), TASK)]
        written: list[tuple[int, int]] = []
        with progress_bar(total=count, initial=count - len(missing), desc=f"caching {part.stem}", unit="image") as bar:
            try:
                for states in pool.map(work, tasks):
                    written += states
                    bar.update(len(states))
                    if sum(int(begins[row + 1] - begins[row]) for row, _ in written) >= SYNC:
                        _note(images, journal, written, done)
            finally:
                _note(images, journal, written, done)
        undecodable = [row for row, state in enumerate(done) if state == UNDECODABLE]
        kept = {
            "packages": _packages(),
            "undecodable": undecodable,
            "reasons": [reasons.get(row) or _reason(row, decode.image) for row in undecodable],
        }
        _replace(part / ABOUT, (json.dumps(settings | kept, indent=1) + "\n").encode())
    finally:
        pool.shutdown(cancel_futures=True)
        os.close(images)
        os.close(journal)


def _decoded(row: int, decode: Decode, shape: tuple[int, ...], reasons: dict[int, str]) -> tuple[Tensor, int]:
    """Return the image of a row and its state; a black one where it cannot be decoded, and why in ``reasons``."""
    try:
        image = decode.image(row)
        if tuple(image.shape[1:]) != shape:
            raise UndecodableError(f"it became {list(image.shape)}", "of another shape than the head of its file says")
        return image, DECODED
    except UndecodableError as error:
        _refuse_passing(error)
        reasons[row] = error.reason
        return torch.zeros(decode.form.channels, *shape, dtype=decode.form.dtype), UNDECODABLE


def _reason(row: int, decode: Callable[[int], Tensor]) -> str:
    """Return why an image cannot be decoded that a build found out which was killed: it has kept only that it is so."""
    try:
        decode(row)
    except UndecodableError as error:
        return error.reason
    return "it could not be decoded when the cache was built"


def _refuse_passing(error: UndecodableError) -> None:
    if _may_pass(error):
        raise UserError(f"data.cache: {error}, which may pass; start again, the images so far are kept.") from error


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
