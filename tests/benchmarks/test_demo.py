"""The demo says how long it still takes, by what its parts have taken here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("demo", Path(__file__).parents[2] / "benchmarks" / "demo.py")
assert SPEC is not None
assert SPEC.loader is not None
demo = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(demo)


def test_what_is_left_follows_from_the_first_parts() -> None:
    shares = [share for share, _ in demo.PARTS]
    assert demo.left([2 * shares[0]]) == pytest.approx(2 * sum(shares[1:]))
    assert demo.left(shares) == 0


def test_every_part_is_a_command_that_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    run: list[list[str]] = []
    assert demo.demo("runs/my demo", lambda words: run.append(words) or 0) == 0
    assert [words[3] for words in run] == ["evaluate", "evaluate", "train", "evaluate", "train", "evaluate", "compare"]
    assert "run_dir=runs/my demo/simclr" in run[2]
    said = capsys.readouterr().out
    assert "[1/7, after this one it is known how long it takes] selfsup evaluate checkpoint=raw_pixels" in said
    assert "[2/7, about 0 s left here]" in said
    assert demo.demo("runs/x", lambda words: 2) == 2
