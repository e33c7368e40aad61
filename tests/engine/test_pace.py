"""What is left of a training follows from its batches, its evaluations and a clock."""

from __future__ import annotations

import pytest

from selfsup.engine.pace import Length, Pace, in_words


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def pace(clock: Clock) -> Pace:
    return Pace(Length(epochs=4, batches=3, images=10, looks=lambda epoch: epoch % 2 == 0), clock)


def take(watch: Pace, clock: Clock, *seconds: float) -> None:
    for each in seconds:
        clock.now += each
        watch.end_batch()


def test_the_time_left_is_of_batches_and_of_the_ends_of_epochs() -> None:
    clock = Clock()
    watch = pace(clock)
    watch.begin_epoch(0, 0)
    take(watch, clock, 50.0)  # warms up, and counts for nothing
    assert (watch.left, watch.images_per_second) == (None, None)
    take(watch, clock, 2.0, 2.0)
    assert (watch.images_per_second, watch.left, watch.position) == (5.0, 18.0, 3)
    clock.now += 1.0  # the end of an epoch without a look
    assert watch.position == 3
    watch.begin_epoch(1, 0)
    take(watch, clock, 2.0, 2.0, 2.0)
    assert watch.left == 6 * 2.0 + 1.0  # one more such end is ahead; those with a look are not known yet
    clock.now += 5.0
    watch.begin_epoch(2, 0)
    assert watch.left == 6 * 2.0 + 1.0 + 5.0
    clock.now += 0.5
    assert (watch.left, watch.position) == (17.5, 6.25)
    clock.now += 100.0  # one that is slower than it should be is not taken for those after it
    assert (watch.left, watch.position) == (16.0, 6.99)


def test_a_resumed_epoch_goes_on_where_it_was() -> None:
    clock = Clock()
    watch = pace(clock)
    watch.begin_epoch(2, 1)
    take(watch, clock, 9.0, 1.0)
    assert (watch.done, watch.left, watch.epoch_batches, watch.epoch_images_per_second) == (9, 3.0, 2, 2.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5900, "98 min"), (6000, "1.7 h"), (108000, "30 h"), (5e5, "6 days")],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
