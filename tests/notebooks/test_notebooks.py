"""The notebooks run from top to bottom, leave nothing behind, and are stored with outputs that a page can show."""

from __future__ import annotations

import ast
import base64
import io
import re
import shutil
import tempfile
from itertools import groupby
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
LONG = {"augmentations", "compare_methods", "dense_features", "released_weights"}  # several trainings each
LARGEST = 150_000  # bytes of a picture
VARIES = r"(?m)^Trained .*|.* warnings? of .*|SHA-256 \w+"  # time and memory of a training, the exact weights
MACHINE = re.compile(r"(?<![\w.])/(tmp|home|root|work|usr|Users|private|var)/")


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text_of(output):
    data = output.get("data", {})
    table = re.sub(r"<[^>]*>", " ", data.get("text/html", ""))
    return "".join([output.get("text", ""), data.get("text/markdown", ""), table or data.get("text/plain", "")])


def test_they_are_there_and_a_reader_finds_them():
    assert len(NAMES) > 3
    text = (FOLDER.parent / "README.md").read_text("utf-8")
    assert [name for name in NAMES if f"](notebooks/{name}.ipynb)" not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in NAMES])
def test_it_runs_and_cleans_up(name, tmp_path, monkeypatch):
    # A short path: loader workers hand images over through a socket in this folder, and the name of a socket has at
    # most 107 characters. A longer one fails in the worker's thread, and the reader waits for ever.
    temporary, start = Path(tempfile.mkdtemp()), tmp_path / "start"
    start.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # kernels side by side with more threads than cores wait for each other
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))  # torch makes it where it is imported
    notebook = read(name)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    resources = {"metadata": {"path": str(start)}}
    NotebookClient(notebook, timeout=3600, kernel_name="python3", resources=resources).execute()
    assert all(output.output_type != "error" for output in outputs(notebook))
    assert kinds(notebook) == kinds(read(name))
    assert differences(notebook, read(name)) == []
    assert list(start.iterdir()) == []
    assert [path.name for path in temporary.iterdir() if path.suffix != ".json"] == []
    shutil.rmtree(temporary)


def kinds(notebook):
    """What sorts of output each cell has: the numbers may differ between machines, the form may not."""

    def kind(output):
        return output.output_type, output.get("name"), sorted(output.get("data", {}))

    # what is printed comes in one piece or in several
    return [[key for key, _ in groupby(cell.get("outputs", []), kind)] for cell in notebook.cells]


def differences(notebook, stored):
    """Numbers that are not the stored ones: whole ones are equal, others within what the first cell says."""
    (within,) = re.findall(r"within ([\d.]+) on another processor", stored.cells[0].source)
    found = []
    for new, old in zip(numbers(notebook), numbers(stored), strict=True):
        same = len(new) == len(old) and all(
            abs(float(a) - float(b)) <= (float(within) * max(1.0, abs(float(b))) if "." in a + b else 0)
            for a, b in zip(new, old, strict=True)
        )
        found += [] if same else [(new, old)]
    return found


def numbers(notebook):
    """The numbers that each cell shows, as they are written."""
    texts = ["\n".join(map(text_of, cell.get("outputs", []))) for cell in notebook.cells]
    return [re.findall(r"-?\d+(?:\.\d+)?", re.sub(VARIES, "", text)) for text in texts]


def test_numbers_that_differ_are_found():
    stored, same, other, longer = (
        nbformat.from_dict(
            {"cells": [{"cell_type": "markdown", "source": "within 0.05 on another processor"}, cell(text)]}
        )
        for text in ("17: 0.50\nTrained in 7 s", "17: 0.54\nTrained in 8 s", "17: 0.56", "17: 0.50, 3")
    )
    assert differences(same, stored) == []
    assert differences(other, stored) == [(["17", "0.56"], ["17", "0.50"])]
    assert len(differences(longer, stored)) == 1


def cell(text):
    return {"cell_type": "code", "source": "", "outputs": [{"output_type": "stream", "name": "stdout", "text": text}]}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stored_with_small_clean_outputs(name):
    notebook = read(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # from top to bottom, once
    shown = [output.get("data", {}) for output in outputs(notebook)]
    encoded = [data["image/png"] for data in shown if "image/png" in data]
    encoded += [found for data in shown for found in re.findall(r"base64,([\w+/=]+)", data.get("text/html", ""))]
    pictures = [base64.b64decode(picture) for picture in encoded]
    assert len(pictures) >= 1
    for picture in pictures:
        assert len(picture) < LARGEST
        with Image.open(io.BytesIO(picture)) as image:
            image.load()
            assert min(image.size) > 100
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        assert not MACHINE.search(text_of(output)), text_of(output)
        assert "%|" not in text_of(output)  # a progress bar


@pytest.mark.parametrize("name", NAMES)
def test_it_uses_the_public_api_and_says_what_it_does(name):
    notebook = read(name)
    words = sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown")
    assert words > 100
    assert notebook.cells[0].source.startswith("# ")
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        assert not re.search(r"chdir|filterwarnings|%%|csv|json", cell.source)
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom):
                assert not str(node.module).startswith("selfsup"), "import selfsup is enough"
            used = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            used += [node.attr] if isinstance(node, ast.Attribute) else []
            assert not [item for item in used if item.startswith("_") and item != "__init__"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("run folder: runs/simclr", False),
        ("run folder: /tmp/abc/runs", True),
        ("at /home/someone/x", True),
        ("photos/tmp/a.jpg", False),
    ],
)
def test_paths_of_a_machine_are_recognised(text, found):
    assert bool(MACHINE.search(text)) == found
