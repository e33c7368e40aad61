"""Which split a file is of: what the names of folders say, or ``data.splits``."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfsup.data.encoded import EncodedConfig
from selfsup.data.splits import choose_test, split_of
from selfsup.errors import UserError
from selfsup.settings import setting

SPLITS = ("train", "holdout", "test")
CALLED = {"train": "train", "holdout": "val", "test": "test"}  # what records call them


@dataclass
class DividedConfig(EncodedConfig):
    """Settings of sources that are divided into splits by names, or else by a draw.

    Attributes:
        splits: What each split is made of, ``{train: [a, b], test: ["c/*.png"]}``: of ``train``, ``holdout`` and
            ``test`` a list of folders or patterns below ``root``, ``.`` for all of it. What none of them names is left
            out. Without ``holdout`` a part of ``train`` is set aside, without ``test`` another. None goes by names.
        test_split: The split to test on, ``test`` or ``val``; None takes the first of them there is.
        test_fraction: Fraction set aside where there is no test split; 0 sets none aside.
    """

    splits: dict[str, Any] | None = None
    test_split: str | None = None
    test_fraction: float = setting(0.2, least=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.splits is not None and self.test_split is not None:
            raise UserError("data.test_split and data.splits both say what to test on; set one of them.")


@dataclass
class Division:
    """Of which split each file is.

    Attributes:
        split: Of each file ``train``, ``val``, ``test`` (with ``data.splits`` ``holdout`` in place of ``val``), or None
            where it is of no split.
        below: Path of each file without the folder that says the split, whose first folder can be a class.
        said: Of each split, what said so.
        left_out: Folders of no split, and how many files are in each.
        notes: What a person should know.
    """

    split: list[str | None]
    below: list[str]
    said: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def of(self, name: str) -> list[int]:
        """Return the places of the files of a split."""
        return [place for place, split in enumerate(self.split) if split == name]


def divide_by_choice(names: Sequence[str], chosen: Mapping[str, Any]) -> Division:
    """Divide files as ``data.splits`` says.

    Raises:
        UserError: It names another split, nothing, what is not there, or a file twice.
    """
    unknown = [name for name in chosen if name not in SPLITS]
    if unknown or "train" not in chosen:
        raise UserError(
            f"data.splits: {', '.join(unknown) + ' is not a split here' if unknown else 'train is missing'}; "
            "name train, and holdout (the images that choices are made on) and test where you have them."
        )
    found = Division([None] * len(names), list(names))
    for split, given in chosen.items():
        patterns = [given] if isinstance(given, str) else list(given or [])
        if not patterns:
            raise UserError(f"data.splits.{split} names no folder; name at least one, or leave {split} out.")
        for pattern in (str(pattern).removeprefix("./").rstrip("/") for pattern in patterns):
            matches, prefix = _matcher(pattern, names)
            places = [place for place, name in enumerate(names) if matches(name)]
            if not places:
                raise UserError(
                    f"data.splits.{split}: {pattern} is not a folder of images below data.root and matches none of the "
                    f"{len(names)} images, {names[0]} for one; name a folder or a pattern that is there."
                )
            for place in places:
                if found.split[place] not in (None, split):
                    raise UserError(
                        f"data.splits: {names[place]} is of both {found.split[place]} and {split}; a file is of one."
                    )
                found.split[place] = split
                found.below[place] = names[place][len(prefix) :]
        found.said[split] = f"data.splits: {', '.join(map(str, patterns))}"
    found.left_out.update(_top(name) for name, split in zip(names, found.split, strict=True) if split is None)
    return found


def divide_by_name(names: Sequence[str], folders: Sequence[str] = ()) -> Division | None:
    """Divide files by folders that are called as splits: ``train`` beside ``test`` or ``valid``, in any case.

    Such folders count where a training folder lies beside a test or validation folder, as near to the root as there are
    some; a training folder at the root counts alone as well. Then other folders beside them are of no split.

    Args:
        names: The files.
        folders: Folders that may hold none of them: what is called ``test`` and is empty says something as well.

    Returns:
        The division, or None where no names say it.

    Raises:
        UserError: All folders at the root are called as splits, but none of them is for training.
    """
    inside: dict[str, set[str]] = defaultdict(set)
    filled = {""}  # folders that have images somewhere below
    for folders_of, they_hold in (({name.rpartition("/")[0] for name in names}, True), (set(folders), False)):
        for folder in folders_of:
            parts = folder.split("/") if folder else []
            for depth, part in enumerate(parts):
                inside["/".join(parts[:depth])].add(part)
                filled |= {"/".join(parts[: depth + 1])} if they_hold else set()
    at_root = {split_of(name.partition("/")[0]) if "/" in name else None for name in names}
    if at_root == {"test", "val"}:
        raise UserError(
            "data.root holds folders called test and val but none called train; set "
            "data.splits={train: [FOLDER], test: [FOLDER]}, or data.splits={train: [.]} to read all as one."
        )
    spoken = {parent: {*map(split_of, there)} - {None} for parent, there in inside.items() if parent in filled}
    depths = [
        _depth(parent)
        for parent, splits in spoken.items()
        if "train" in splits and (parent == "" or splits & {"test", "val"})
    ]
    if not depths:
        return None
    depth = min(depths)
    parents = {parent for parent, splits in spoken.items() if splits and _depth(parent) == depth}
    # the folders that hold all the splits say nothing of the classes
    above = _common(parents)
    found = Division([None] * len(names), list(names))
    said: dict[str, list[str]] = defaultdict(list)
    for parent in sorted(parents):
        for folder in sorted(inside[parent]):
            if (split := split_of(folder)) is not None:
                said[split].append(f"{parent}/{folder}" if parent else folder)
    for place, name in enumerate(names):
        parts = name.split("/")
        split = split_of(parts[depth]) if len(parts) > depth + 1 and "/".join(parts[:depth]) in parents else None
        if split is None:
            found.left_out[_top(name)] += 1
            continue
        found.split[place] = split
        found.below[place] = "/".join(parts[:depth] + parts[depth + 1 :])[len(above) :]
    for split, there in said.items():
        several = f" and {len(there) - 1} more" if len(there) > 1 else ""
        found.said[split] = f"folder {there[0]}{several}"
    if set(said) == {"train"} and found.left_out:
        train = said["train"][0]
        found.notes.append(
            f"only the folder {train} is read, as it is called after a split; if it is a class like the folders beside "
            "it, set data.splits={train: [.]}"
        )
    return found


def choose(division: Division, config: DividedConfig) -> dict[str, list[int]]:
    """Return the places of the files of each split that is used: ``train``, and ``holdout`` and ``test`` where there.

    What is called ``val`` is tested on where nothing is called ``test``; beside a test split it is the hold-out, as
    choices are what it is for. What ``data.test_split`` passes over is left out, and counted in ``division.left_out``.

    Raises:
        UserError: The split that ``data.test_split`` asks for is not there.
    """
    used = {"train": "train"}
    if config.splits is not None:
        used |= {split: split for split in ("holdout", "test") if split in division.said}
    else:
        test = choose_test(list(division.said), config.test_split)
        if test is not None:
            used[test] = "test"
        # by position the parts are those of versions that passed over val beside a test split
        if test == "test" and config.test_split is None and "val" in division.said and config.membership == "image":
            used["val"] = "holdout"
    for split in [split for split in division.said if split not in used]:
        passed = division.of(split)
        division.left_out[division.said.pop(split)] += len(passed)
        for place in passed:
            division.split[place] = None
    division.said = {used[split]: said for split, said in division.said.items()}
    return {used[split]: division.of(split) for split in used}


def _depth(folder: str) -> int:
    return folder.count("/") + 1 if folder else 0


def _common(folders: Iterable[str]) -> str:
    """Return the folder that holds all of these or is the only one, with a ``/`` behind it, or nothing."""
    common = posixpath.commonpath(list(folders))
    return f"{common}/" if common else ""


def _top(name: str) -> str:
    first, slash, _ = name.partition("/")
    return f"{first}/" if slash else "beside the folders"


def _matcher(pattern: str, names: Sequence[str]) -> tuple[Callable[[str], object], str]:
    """Return what matches the files of a folder or a pattern, and the folder that all of them lie in, with a ``/``."""
    if pattern in (".", ""):
        return (lambda name: True), ""
    folder = f"{pattern}/"
    if any(name.startswith(folder) for name in names):  # first, as folders may be called [a]
        return (lambda name: name.startswith(folder)), folder
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    # a star goes on into folders, and what matches a folder matches all in it
    expression = re.compile(f"{fnmatch.translate(pattern)}|{fnmatch.translate(pattern + '/*')}")
    return expression.match, f"{fixed}/" if fixed else ""
