"""What messages write again and again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from selfsup.wording import command, counted, word


@pytest.mark.parametrize(("number", "said"), [(0, "0 epochs"), (1, "1 epoch"), (2, "2 epochs"), (1200, "1,200 epochs")])
def test_a_count_agrees_with_its_noun(number: int, said: str) -> None:
    assert counted(number, "epoch") == said


def test_a_plural_of_its_own() -> None:
    assert [counted(number, "query", "queries") for number in (1, 2)] == ["1 query", "2 queries"]


@pytest.mark.parametrize("name", ["runs/a", "it's my run", 'a "b"', "$HOME", "a;b", "lr=0.1", "-x", "a\nb"])
def test_a_shell_reads_what_was_written(name: str) -> None:
    script = command("compare", word(Path(name))).replace("selfsup", "printf '%s\\0'", 1)
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    verb, path = said.split("\0")[:2]
    assert verb == "compare"
    assert Path(path) == Path(name)
    assert not path.startswith("-")
    assert "=" not in path.partition("/")[0]
