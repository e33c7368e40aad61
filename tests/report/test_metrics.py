"""A run's metrics.csv is read as the run, a kill or a spreadsheet left it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsup.errors import UserError
from selfsup.report.metrics import read_metrics

TEXT = "epoch,step,train/loss\r\n0,0,2.5\r\n0,1,2.25\r\n,1,\r\n"
ROWS = [("0", "2.5"), ("1", "2.25"), ("1", "")]


def rows(path: Path) -> list[tuple[str, str]]:
    return [(row["step"], row["train/loss"]) for row in read_metrics(path).rows]


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        "\ufeff" + TEXT,
        TEXT.replace("\r\n", "\n"),
        TEXT.replace("\r\n", "\r\n\r\n"),
        TEXT + ",,\r\n",
        TEXT.replace("0,0,", "0,0.0,"),
    ],
)
def test_what_spreadsheets_do_is_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(text.encode("utf-8"))
    assert rows(path) == ROWS
    assert read_metrics(path).notes == []


def test_added_columns_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss,mine\n0,0,2.5,a note\n", "utf-8")
    assert read_metrics(path).rows == [{"epoch": "0", "step": "0", "train/loss": "2.5", "mine": "a note"}]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(TEXT)))
def test_a_file_cut_anywhere_loses_its_torn_line_alone(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "metrics.csv"
    path.write_bytes(TEXT[:cut].encode())
    whole = TEXT[:cut].count("\r")
    assert rows(path) == ROWS[: max(0, whole - 1)] if whole else read_metrics(path).rows == []
    torn = cut and TEXT[cut - 1] not in "\r\n"
    assert len(read_metrics(path).notes) == bool(torn)


@pytest.mark.parametrize(
    "content",
    [
        b"a,b\n1,2\n",
        b"step,x\n1,2\n3,4,5\n",
        b"step,x\nfirst,2\n3,4\n",
        b"\0\0\0",
        b"\xff\xfe\x00s",
        b"step,x\n-1,2\n3,4\n",
    ],
)
def test_a_file_that_makes_no_sense_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.csv") as refused:
        read_metrics(path)
    assert "\n" not in str(refused.value)


def test_what_is_no_file_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    os.mkfifo(path)  # whose end nobody writes
    with pytest.raises(UserError, match=r"metrics\.csv cannot be read as a table \(it is no file\)"):
        read_metrics(path)
