"""How fast a training goes, and how long it still takes."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

RECENT = 100  # batches whose time is looked at


@dataclass(frozen=True)
class Length:
    """What a training consists of.

    Attributes:
        epochs, batches: Its epochs, and the batches of each.
        images: Images of a batch, over all ranks.
        looks: Whether features are looked at after an epoch, counted from 1.
    """

    epochs: int
    batches: int
    images: int
    looks: Callable[[int], bool]

    @property
    def total(self) -> int:
        """Batches of the whole training."""
        return self.epochs * self.batches


class Pace:
    """A watch beside a training: it is told when batches and epochs begin and end, and asks no device for anything.

    Args:
        length: Of the training.
        clock: Seconds that pass.

    Attributes:
        done: Batches that are done.
        timed: Batches that have been timed; the first one, which warms up, is none of them.
        epoch_batches: Batches of the present epoch that this process has done.
        batch_seconds: Mean time of a batch lately; None before one has been timed.
    """

    def __init__(self, length: Length, clock: Callable[[], float] = time.monotonic) -> None:
        self.length, self._clock = length, clock
        self.done = self.timed = 0
        self.batch_seconds: float | None = None
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._warmed_up = False
        self._mark = self._epoch_began = clock()
        self.epoch_batches = 0
        self._between = False  # epochs
        self._ends: dict[bool, float] = {}  # seconds of the end of an epoch, with a look and without

    def begin_epoch(self, epoch: int, done: int) -> None:
        """An epoch, counted from 0, begins; ``done`` of its batches have been taken already."""
        now = self._clock()
        if self._between:
            self._ends[self.length.looks(epoch)] = now - self._mark
        self._mark = now
        self.epoch_batches, self._epoch_began, self._between = 0, now, False
        self.done = epoch * self.length.batches + done

    def end_batch(self) -> None:
        """A batch is done."""
        now = self._clock()
        seconds, self._mark = now - self._mark, now
        self.done += 1
        self.epoch_batches += 1
        self._between = self.done % self.length.batches == 0
        if self._warmed_up:
            self.timed += 1
            self._recent.append(seconds)
            self.batch_seconds = statistics.fmean(self._recent)
        self._warmed_up = True

    @property
    def images_per_second(self) -> float | None:
        """Images a second over all ranks, lately, without what happens between epochs."""
        seconds = self.batch_seconds
        return self.length.images / seconds if seconds else None

    @property
    def epoch_images_per_second(self) -> float:
        """The same over the batches of the present epoch so far."""
        seconds = self._mark - self._epoch_began
        return self.epoch_batches * self.length.images / seconds if seconds > 0 else 0.0

    @property
    def since(self) -> float:
        """Seconds since the last batch ended, or an epoch began."""
        return self._clock() - self._mark

    @property
    def position(self) -> float:
        """Batches that are done, and the part of the present one that should be."""
        seconds = self.batch_seconds
        part = min(0.99, self.since / seconds) if seconds and not self._between else 0.0
        return min(self.done + part, self.length.total)

    @property
    def left(self) -> float | None:
        """Seconds to the end at this pace; None before a batch has been timed."""
        seconds, length = self.batch_seconds, self.length
        if seconds is None:
            return None
        ends_ahead = range(self.done // length.batches + (not self._between), length.epochs + 1)
        looks = sum(map(length.looks, ends_ahead))
        ends = self._ends.get(True, 0.0) * looks + self._ends.get(False, 0.0) * (len(ends_ahead) - looks)
        now = self._ends.get(length.looks(ends_ahead.start), 0.0) if self._between else seconds
        # what takes longer than it should is not taken for what comes after it
        return max(0.0, seconds * (length.total - self.done) + ends - min(self.since, now))


def in_words(seconds: float) -> str:
    """Return a time as people say it: ``45 s``, ``12 min``, ``3.5 h``, ``30 h``, ``6 days``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    if hours < 72:
        return f"{hours:.1f} h" if hours < 9.95 else f"{hours:.0f} h"
    return f"{hours / 24:.0f} days"
