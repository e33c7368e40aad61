"""What a source found where it looked, and what became of every file: said when a run starts, and kept with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from selfsup.wording import counted

#: Why a file is left out, as people read it. Each file is under exactly one of them, or it is read.
NO_DECODER = "images of a type that no installed decoder reads"
NO_IMAGE = "no images"
BESIDE = "arrays beside images (data.files reads them)"
HIDDEN = "hidden"
SYSTEM = "of the system"
OWN = "in run folders and caches"
NOT_TAKEN = "in folders of no split"
NO_SPLIT = "in shards of no split"
BROKEN = "links and folders that cannot be followed"
NOT_LISTED = "in no list of images"
MISSING = "in the list of files, but not there"
UNDECODABLE = "undecodable"

MOST = 5  # kinds of files, folders or classes that a line names; the others are counted
MOST_KEPT = 100  # of those that the run keeps of one reason


@dataclass
class Found:
    """What was found and what was taken of it.

    Attributes:
        where: The folder, or the folders.
        unit: What ``read`` and ``left_out`` count: ``files``, or ``images`` in shards.
        read: How many of them are read.
        left_out: Of each reason: endings, folders or causes, and how many files each.
        splits: Of each split: how many images it has, and where they come from.
        labels: Where the labels come from; None where there are none.
        classes: Their names.
        targets: What there is in place of one class each, with numbers (``selfsup.data.targets.numbers_of``), or None.
        without_label: Images that have no label, where others have one.
        notes: What a person should know, a sentence each.
    """

    where: str
    unit: str = "files"
    read: int = 0
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    splits: dict[str, tuple[int, str]] = field(default_factory=dict)
    labels: str | None = None
    classes: tuple[str, ...] = ()
    targets: dict[str, Any] | None = None
    without_label: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Everything that was found, each counted once."""
        return self.read + sum(counts.total() for counts in self.left_out.values())

    def leave_out(self, reason: str, detail: str, count: int = 1) -> None:
        """Count what is not read."""
        self.left_out.setdefault(reason, Counter())[detail] += count

    def undecodable(self, reasons: Mapping[str, int]) -> None:
        """Count what was taken for an image and turned out to be none."""
        for reason, count in reasons.items():
            self.leave_out(UNDECODABLE, reason, count)
            self.read -= count

    def why_nothing(self) -> str:
        """Return in brackets what there is where nothing can be read, or nothing."""
        return f" ({'; '.join(self._reasons())})" if self.left_out else ""

    def _reasons(self) -> list[str]:
        return [f"{counts.total():,} {reason}{_named(counts)}" for reason, counts in self.left_out.items()]

    def lines(self) -> list[str]:
        """Return what is found as lines of text."""
        first = f"data: {self.read:,} of {self.total:,} {self.unit} in {self.where} are read"
        reasons = self._reasons()
        lines = [first + (f"; left out: {'; '.join(reasons)}" if reasons else "")]
        if self.splits:
            lines.append("splits: " + ", ".join(f"{n} {count:,} ({how})" for n, (count, how) in self.splits.items()))
        if self.labels is not None:
            missing = f"; {counted(self.without_label, 'image has', 'images have')} none" if self.without_label else ""
            what = f"{counted(len(self.classes), 'class', 'classes')} from {self.labels} ({_some(self.classes)})"
            lines.append(f"labels: {what if self.targets is None else self._targets(self.targets)}{missing}")
        else:
            lines.append("labels: none")
        return lines + [f"note: {note}" for note in self.notes]

    def _targets(self, found: Mapping[str, Any]) -> str:
        """Return what there is in place of classes as a line says it."""
        names = found["names"]
        if found["kind"] == "real":
            own = found["of_each"].items()
            each = (f"{name} {v['least']:.4g} to {v['most']:.4g}, mean {v['mean']:.4g}" for name, v in own)
            return f"{len(names):,} real values from {self.labels} ({_some(each)})"
        count = found["images_with_none"]
        none = f", {counted(count, 'image with none of them', 'images with none of them')}" if count else ""
        said = f"{len(names):,} labels from {self.labels} ({_some(names)})"
        return f"{said}, several an image: {found['an_image']:.3g} on average{none}"

    def to_json(self) -> dict[str, Any]:
        """Return the same for ``environment.json``."""
        return {
            "where": self.where,
            "unit": self.unit,
            "total": self.total,
            "read": self.read,
            "left_out": {reason: _kept(counts) for reason, counts in self.left_out.items()},
            "splits": {name: {"images": count, "from": how} for name, (count, how) in self.splits.items()},
            "labels": self.labels,
            "classes": list(self.classes),
            **({} if self.targets is None else {"targets": self.targets}),
            "without_label": self.without_label,
            "notes": self.notes,
        }


def _named(counts: Counter[str]) -> str:
    names = [f"{count:,} {name}" if len(counts) > 1 else name for name, count in counts.most_common() if name]
    if not names:
        return ""
    return f" ({_some(names)})"


def _kept(counts: Counter[str]) -> dict[str, int]:
    kept = dict(counts.most_common(MOST_KEPT))
    rest = counts.total() - sum(kept.values())
    return kept | ({"others": rest} if rest else {})


def _some(names: Iterable[str]) -> str:
    every = list(names)
    rest = f" and {len(every) - MOST:,} more" if len(every) > MOST else ""
    return ", ".join(every[:MOST]) + rest
