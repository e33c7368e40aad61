"""Which files below a folder are images, and of every other one why it is left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from selfsup.bars import progress_bar
from selfsup.data.decode import HEIF_ENDINGS, is_readable
from selfsup.data.found import BESIDE, BROKEN, HIDDEN, MISSING, NO_DECODER, NO_IMAGE, OWN, SYSTEM
from selfsup.errors import UserError

HOW_TO_READ_HEIF = "pip install 'selfsup[heif]' reads them"
HOW_TO_READ_DICOM = "pip install 'selfsup[dicom]' reads them"
DICOM_ENDINGS = frozenset({".dcm", ".dicom"})
ARRAY = ".npy"  # often what lies beside images; where there are no images it holds them
#: Endings of images that neither Pillow nor one of its plug-ins that are offered here reads.
_OTHERS = (
    "3fr ai arw avif avifs cdr cr2 cr3 czi dng emf eps erf exr hdr j2k jls jp2 jxl jxr kdc lif mrxs nd2 nef nrw "
    "orf pef psb raf raw rw2 rwl sr2 srw svg svgz svs webp wmf x3f xcf"
)
OTHER_IMAGES = frozenset(f".{ending}" for ending in _OTHERS.split())
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
SYSTEM_FOLDERS = frozenset(
    {"__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "lost+found", "node_modules", "site-packages"}
)
#: What shows that a folder was written by selfsup or Python: a file, and one or another beside it.
OWN_FOLDERS = (
    ("config.yaml", {"metrics.csv", "environment.json", "checkpoints"}),  # a run
    ("results.json", {"figures"}),  # an evaluation of a network from elsewhere
    ("images.u8", {"about.json", "journal.u8"}),  # a cache of pixels, finished or not
    ("comparison.md", {"comparison.csv"}),
    ("neighbours.csv", {"contact_sheet.png"}),
    ("cka.csv", {"cka.png"}),
    ("pyvenv.cfg", {"bin", "Scripts"}),
)


@dataclass
class Listing:
    """What lies below a folder.

    Attributes:
        names: The images, relative to the folder, with ``/``, sorted.
        folders: The folders that may hold images, whether they do or not.
        left_out: How many other files there are of each reason (one of ``selfsup.data.found``) and detail of it: an
            ending, a folder, a file.
    """

    names: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)


def list_images(root: Path) -> Listing:
    """List all files below ``root``. They are distinguished by their names and not opened.

    Hidden files, what systems keep beside the files, and what this package itself wrote (run folders, caches,
    comparisons) are no data. Links are followed, but not back to a folder that holds them.
    """
    found = Listing()
    with progress_bar(desc=f"listing {root.name}", unit="file", delay=2) as progress:
        for name, excuse in _walk(str(root), "", None):
            if name.endswith("/"):
                found.folders += [name[:-1]] if excuse is None else []
                continue
            if excuse is None:
                found.names.append(name)
            else:
                found.left_out[excuse] += 1
            progress.update()
    found.names = _without_arrays_beside_images(found)
    found.names.sort()
    return found


def _without_arrays_beside_images(found: Listing) -> list[str]:
    """Return the images; arrays are images only where there are no others."""
    images = [name for name in found.names if not name.lower().endswith(ARRAY)]
    if not images:
        return found.names
    if len(images) < len(found.names):
        found.left_out[BESIDE, ARRAY] += len(found.names) - len(images)
    return images


def read_list(path: Path, root: Path | None) -> tuple[Path, Listing]:
    """Read the images that a text file names, one a line.

    Args:
        path: The file, in UTF-8.
        root: What the lines are relative to; None is the folder of the file.

    Returns:
        The folder that all of them lie in: ``root``, if it does; and the images.

    Raises:
        UserError: The file cannot be read, or names an image twice.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.files: {path} cannot be read ({error}); set it to a text file of paths.") from error
    base = (path.parent if root is None else root).absolute()
    places = [os.path.normpath(base / line) for line in lines]
    if len(set(places)) < len(places):
        twice = next(line for line, place in zip(lines, places, strict=True) if places.count(place) > 1)
        raise UserError(f"data.files: {path} names {twice} more than once; name each file once.")
    if not all(Path(place).is_relative_to(base) for place in places):
        base = Path(os.path.commonpath([base, *places]))
    found = Listing()
    for place in places:
        name = PurePosixPath(Path(place).relative_to(base)).as_posix()
        excuse = why_left_out(Path(place).name)
        if excuse is None and not os.path.isfile(place):
            excuse = (MISSING, name)
        if excuse is None:
            found.names.append(name)
        else:
            found.left_out[excuse] += 1
    found.names.sort()
    return base, found


def why_left_out(name: str) -> tuple[str, str] | None:
    """Return why a file of this name cannot be read as an image, as reason and detail; None where it can."""
    if name.startswith("."):
        return HIDDEN, "._*" if name.startswith("._") else name
    if name.lower() in SYSTEM_FILES:
        return SYSTEM, name
    ending = os.path.splitext(name)[1].lower()
    if is_readable(ending):
        return None
    if ending in DICOM_ENDINGS:
        return NO_DECODER, f"{ending}, {HOW_TO_READ_DICOM}"
    if ending in HEIF_ENDINGS:
        return NO_DECODER, f"{ending}, {HOW_TO_READ_HEIF}"
    return (NO_DECODER if ending in OTHER_IMAGES else NO_IMAGE), ending or "without ending"


def _walk(folder: str, prefix: str, excuse: tuple[str, str] | None) -> Iterator[tuple[str, tuple[str, str] | None]]:
    """Yield every file with why it is left out, None for an image; ``excuse`` holds for all of them.

    Folders are yielded as well, with a ``/`` behind. A folder that cannot be read counts as one file.
    """
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except OSError as error:
        yield prefix + "?", excuse or (BROKEN, f"{prefix} ({error.strerror})")
        return
    excuse = excuse or _why_no_data(prefix, {entry.name for entry in entries})
    if prefix:
        yield prefix, excuse
    folders = []
    for entry in entries:
        name = prefix + entry.name
        if _is_folder(entry):
            if not _leads_back(entry):
                folders.append((entry.path, f"{name}/", excuse or _why_folder(entry.name)))
        elif excuse is not None:
            yield name, excuse
        else:
            reason = why_left_out(entry.name)
            yield name, (BROKEN, name) if reason is None and not _is_file(entry) else reason
    for path, below, reason in folders:
        yield from _walk(path, below, reason)


def _why_folder(name: str) -> tuple[str, str] | None:
    if name.startswith("."):
        return HIDDEN, f"{name}/"
    return (SYSTEM, f"{name}/") if name.lower() in SYSTEM_FOLDERS else None


def _why_no_data(prefix: str, names: set[str]) -> tuple[str, str] | None:
    """Tell the folders that this package wrote by what they hold, as people move and rename them."""
    if any(file in names and names & beside for file, beside in OWN_FOLDERS):
        return OWN, prefix or "the folder itself"
    return None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether there is a file: not a link to nothing, and not a pipe, which would be waited for."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _leads_back(entry: os.DirEntry[str]) -> bool:
    """Whether a symbolic link points at a folder that holds it, which would be walked for ever."""
    if not entry.is_symlink():
        return False
    return Path(os.path.realpath(os.path.dirname(entry.path))).is_relative_to(os.path.realpath(entry.path))
