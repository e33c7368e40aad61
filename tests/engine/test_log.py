"""What a training says is on the screen and in the file; what other packages warn of is in the file alone."""

from __future__ import annotations

import logging
import sys
import sysconfig
import warnings
from pathlib import Path

import pytest

from selfsup.engine.log import FILE, RunLog, is_elsewhere
from selfsup.errors import UserError


def lines(folder: Path) -> list[str]:
    return [line.partition("  ")[2] for line in (folder / FILE).read_text().splitlines()]


def warn_elsewhere(text: str) -> None:
    warnings.warn_explicit(text, FutureWarning, f"{sysconfig.get_path('purelib')}/theirs.py", 3)


def test_both_places_have_it_and_an_early_word_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    streams = sys.stdout, sys.stderr
    with RunLog() as log:
        print("before there is a folder")
        log.keep(tmp_path)
        print("on two", "\nlines", end="")
        print(" and an error", file=sys.stderr)
        sys.stderr.write("\rhalf a bar")
        print("\nthe end")
        log.write("in the \x1b[31mfile only")
    assert (sys.stdout, sys.stderr) == streams
    said = capsys.readouterr()
    assert said.out == "before there is a folder\non two \nlines\nthe end\n"
    assert said.err == " and an error\n\rhalf a bar"
    expected = ["before there is a folder", "on two ", " and an error", "lines", "the end", r"in the \x1b[31mfile only"]
    assert lines(tmp_path) == expected


def test_a_bar_is_out_of_the_way_of_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog() as log:
        stream = sys.stdout.stream  # type: ignore[attr-defined]
        log.clear, log.draw = lambda: stream.write("<clear>"), lambda: stream.write("<bar>")
        print("a line")
        print("half", end="")
        print(" and whole")
    assert capsys.readouterr().out == "<clear>a line\n<bar><clear>half and whole\n<bar>"


def test_warnings_and_records_from_elsewhere_are_written_and_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with RunLog() as log:
            log.keep(tmp_path)
            warn_elsewhere("deprecated")
            logging.getLogger("pytorch_lightning.somewhere").handle(
                logging.LogRecord("pytorch_lightning", 30, f"{sysconfig.get_path('purelib')}/x.py", 1, "hm", (), None)
            )
            logging.getLogger("selfsup.data").info("an image of many")
            with pytest.warns(UserWarning, match="ours"):
                warnings.warn("ours", UserWarning, stacklevel=1)
            assert log.elsewhere == 2
    said = capsys.readouterr()
    assert "deprecated" not in said.err + said.out
    assert "hm" not in said.err
    first, second, third = lines(tmp_path)
    assert first.endswith("theirs.py:3: FutureWarning: deprecated")
    assert second.endswith("hm")
    assert third == "an image of many"
    assert logging.getLogger("selfsup").level == logging.NOTSET


def test_the_end_of_a_run_that_failed_is_there(tmp_path: Path) -> None:
    for error in (UserError("data.root is wrong."), RuntimeError("out of luck")):
        log = RunLog()
        log.keep(tmp_path, rank=1)
        with pytest.raises(type(error)), log:
            raise error
    first, *trace = lines(tmp_path)
    assert first == "rank 1: data.root is wrong."
    assert trace[-1] == "rank 1: RuntimeError: out of luck"


def test_elsewhere_is_neither_this_package_nor_a_person_s_file(tmp_path: Path) -> None:
    import torch

    import selfsup

    assert is_elsewhere(str(torch.__file__))
    assert is_elsewhere(logging.__file__)
    assert is_elsewhere("<frozen importlib._bootstrap>")
    assert not is_elsewhere(str(selfsup.__file__))
    assert not is_elsewhere(str(tmp_path / "my_method.py"))
