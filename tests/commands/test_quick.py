"""Help, names and mistakes are told without importing what takes seconds, and a reader may stop reading."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

#: Each of these takes a second or more to import.
SLOW = ("torch", "pytorch_lightning", "timm", "kornia", "sklearn", "matplotlib", "hydra", "omegaconf")


LINES = [
    "--help",
    "--version",
    "train --help",
    "knn --help",
    "methods",
    "data",
    "protocols",
    "knn --only knn",
    "knn RUN k=5",
    "evaluate RUN --only kn",
    "cka RUN RUN evl.seeds=2",
    "trian",
    "embed",
    "export",
    "knn timm:resnet50",
    "probe raw_pixels",
    "evaluate module:net.py:Net",
    "evaluate",
    "segmentation runs/gone",
    "neighbours untrained",
    "embed timm:resnet50 --out f.npz",
    "trajectory gone",
    "transfer timm:resnet50",
    "cka timm:resnet50 timm:resnet18",
    "cka one",
    "export gone --format onnx --out m",
    "compare runs/gone",
    "train moco",
    "train --gpus 2",
    "train model=resnet50",
    "train method=simclrr",
    "train trainer.max_epoch=3",
    "doctor method=moco method.queue_sise=3",
    "methods moco",
    "data image_folder",
    "protocols linear_probe",
    "completion bash",
    "completion --line=selfsup",
]


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """What each line imports of what is slow, where no line before it has."""
    code = (
        "import contextlib, io, json, sys\n"
        "from selfsup.cli import main\n"
        "found = {}\n"
        f"for line in {LINES}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "        main(line.split())\n"
        f"    found[line] = sorted(set({SLOW}) & set(sys.modules) - set().union(*found.values()))\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("line", LINES)
def test_it_starts_at_once(line: str, imported: dict[str, list[str]]) -> None:
    assert imported[line] == []


def test_help_of_settings_needs_hydra_alone() -> None:
    code = (
        "import sys\nfrom selfsup.cli import main\nmain(['train', 'method=moco', 'data=image_folder', '--help'])\n"
        f"print(set({SLOW}) & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(done.stdout.splitlines()[-1])) <= {"hydra", "omegaconf"}


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
