"""Ranges of settings, at their bounds."""

from __future__ import annotations

import math

from selfsup.settings import Range


def test_bounds_themselves() -> None:
    inside = Range(least=0, most=1), Range(above=0, below=1)
    assert [inside[0].holds(value) for value in (0, 1, -0.1, 1.1, math.nan, "a", None)] == [True, True] + [False] * 5
    assert [inside[1].holds(value) for value in (0, 1, 0.5)] == [False, False, True]
