"""Bars write seldom where what they write stays."""

from __future__ import annotations

import io
import sys

import pytest

from selfsup.bars import progress_bar


@pytest.mark.parametrize(
    ("terminal", "notebook", "seconds"), [(True, False, 0.1), (False, False, 10), (False, True, 1)]
)
def test_how_often_a_bar_writes(
    terminal: bool, notebook: bool, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delenv("TQDM_MININTERVAL", raising=False)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    if notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
    with progress_bar(total=1000) as bar:
        assert bar.mininterval == seconds
        for _ in range(1000):
            bar.update()
    assert "1000/1000" in stream.getvalue(), "the last state is shown"
