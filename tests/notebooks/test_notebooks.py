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
NAMES = ("compare_methods", "dense_features", "probe_checkpoint", "views", "your_own_images")
LARGEST = 150_000  # bytes of a picture
MACHINE = re.compile(r"(?<![\w.])/(tmp|home|root|work|usr|Users|private|var)/")


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text_of(output):
    data = output.get("data", {})
    return "".join([output.get("text", ""), data.get("text/plain", ""), data.get("text/markdown", "")])


def test_every_notebook_is_tested():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
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
    assert list(start.iterdir()) == []
    assert [path.name for path in temporary.iterdir() if path.suffix != ".json"] == []
    shutil.rmtree(temporary)


def kinds(notebook):
    """What sorts of output each cell has: the numbers may differ between machines, the form may not."""

    def kind(output):
        return output.output_type, output.get("name"), sorted(output.get("data", {}))

    # what is printed comes in one piece or in several
    return [[key for key, _ in groupby(cell.get("outputs", []), kind)] for cell in notebook.cells]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stored_with_small_clean_outputs(name):
    notebook = read(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))  # from top to bottom, once
    pictures = [base64.b64decode(o.data["image/png"]) for o in outputs(notebook) if "image/png" in o.get("data", {})]
    assert len(pictures) >= 2
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
        for node in ast.walk(ast.parse(cell.source)):
            used = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            used += [node.attr] if isinstance(node, ast.Attribute) else []
            assert not [item for item in used if item.startswith("_")]


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
