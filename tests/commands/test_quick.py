"""Help, names and mistakes are told without importing what takes seconds, and a reader may stop reading."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Each of these takes a second or more to import.
SLOW = ("torch", "pytorch_lightning", "timm", "kornia", "sklearn", "matplotlib")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["knn", "--help"],
        ["methods"],
        ["data"],
        ["protocols"],
        ["knn", "--only", "knn"],
        ["evaluate", "RUN", "--only", "kn"],
        ["trian"],
        ["embed"],
        ["export"],
        ["train", "moco"],
        ["train", "method=simclrr"],
        ["train", "trainer.max_epoch=3"],
        ["doctor", "method=moco", "method.queue_sise=3"],
    ],
    ids=" ".join,
)
def test_it_starts_at_once(words: list[str]) -> None:
    code = f"import sys; from selfsup.cli import main; main({words}); print([m for m in {SLOW} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("flags", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_a_reader_who_leaves_is_no_mistake(flags: list[str]) -> None:
    command = [sys.executable, *flags, "-m", "selfsup.cli", "train", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 128 + 13


def test_another_broken_pipe_is_not_taken_for_it() -> None:
    code = (
        "import selfsup.commands.methods as methods\n"
        "from selfsup.cli import main\n"
        "def run(arguments):\n"
        "    raise BrokenPipeError(32, 'a worker is gone')\n"
        "methods.run = run\n"
        "main(['methods'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "a worker is gone" in done.stderr
