"""Files that are replaced whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from selfsup.errors import UserError
from selfsup.eval.results import add_results, read_results
from selfsup.writing import replace_text, replacing


def _fail(path: Path, error: Exception) -> None:
    with replacing(path) as draft:
        draft.write_text("half")
        assert not path.exists() or path.read_text() != "half"
        raise error


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "below" / "a.txt"
    replace_text(path, "old\r\n")
    with pytest.raises(ZeroDivisionError):
        _fail(path, ZeroDivisionError())
    assert path.read_bytes() == b"old\r\n"
    assert os.listdir(path.parent) == ["a.txt"]


def test_it_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    replace_text(tmp_path / "ours", "")
    ours, plain = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain"))
    assert ours == plain


def test_what_a_kill_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.new").write_text("longer than what follows")
    replace_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos"), OSError()])
def test_a_full_disk_is_a_sentence_that_names_the_file(tmp_path: Path, error: Exception) -> None:
    reason = "No space left on device|unexpected pos|OSError"
    with pytest.raises(UserError, match=rf"a\.txt could not be written \(({reason})\); make room"):
        _fail(tmp_path / "a.txt", error)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        replace_text(tmp_path / "file" / "a.txt", "")


def _add(folder: Path, number: int) -> None:
    for count in range(10):
        add_results(
            folder, [{"protocol": "knn", "split": "test", "metric": "top1", "value": 0.5, "k": 100 * number + count}]
        )


def test_records_that_processes_add_at_once_are_all_kept(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    adding = [context.Process(target=_add, args=(tmp_path, number)) for number in range(4)]
    for process in adding:
        process.start()
    for process in adding:
        process.join(60)
        assert process.exitcode == 0
    assert len(read_results(tmp_path)) == 40
    assert os.listdir(tmp_path) == ["results.json"]


def test_text_that_is_no_unicode_becomes_its_escape(tmp_path: Path) -> None:
    """A run's name may be in another encoding than the system's."""
    replace_text(tmp_path / "a.txt", "caf\udce9\r\nä\n")
    assert (tmp_path / "a.txt").read_bytes() == b"caf\\udce9\r\n\xc3\xa4\n"
