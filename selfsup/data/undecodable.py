"""Images that turned out to be undecodable: logged, counted, and refused when there are too many of them."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from selfsup.errors import UserError

logger = logging.getLogger(__name__)

NAMED = 3  # undecodable images that are named on the screen; a training writes all of them to its log


class Undecodable:
    """The images of a split that turned out to be undecodable, and how many may be.

    Args:
        root: Folder of the source.
        total: Number of images in the split.
        allowed: Largest fraction of undecodable images, rounded up to whole images.

    Attributes:
        reasons: Of each such image, by its row, why.
    """

    def __init__(self, root: Path, total: int, allowed: float) -> None:
        self.root, self.total, self.allowed = root, total, allowed
        self.reasons: dict[int, str] = {}
        self._reported: set[int] = set()

    def report(self, found: Mapping[int, tuple[str, str]]) -> None:
        """Log images, each once: the first few as warnings, then their number when there are more of them.

        Args:
            found: Of each image, by its row, its name and why it cannot be decoded.

        Raises:
            UserError: There are now more than allowed.
        """
        new = {row: why for row, why in found.items() if row not in self._reported}
        if not new:
            return
        before = len(self._reported)
        for row, (name, reason) in new.items():
            self.reasons[row] = reason
            self._reported.add(row)
            level = logging.WARNING if len(self._reported) <= NAMED else logging.INFO
            logger.log(level, "%s cannot be decoded and is left out (%s)", self.root / name, reason)
        now = len(self._reported)
        if before <= NAMED < now or len(str(now)) > len(str(before)):  # then again at 10, 100, 1,000
            reasons = ", ".join(f"{count:,}: {reason}" for reason, count in self.counts().most_common(NAMED))
            logger.warning("%s images in %s cannot be decoded so far (%s)", f"{now:,}", self.root, reasons)
        if len(self._reported) > math.ceil(self.allowed * self.total):
            counts = ", ".join(f"{count}: {reason}" for reason, count in self.counts().most_common())
            name = next(iter(new.values()))[0]
            raise UserError(
                f"{len(self._reported)} of {self.total} images in {self.root} cannot be decoded, {name} for one "
                f"({counts}); repair them or raise data.max_undecodable above {self.allowed}."
            )

    def counts(self) -> Counter[str]:
        """Return how many images there are of each reason."""
        return Counter(self.reasons[row] for row in self._reported)
