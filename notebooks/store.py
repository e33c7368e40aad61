"""Execute notebooks and store them with their outputs, small enough for a code-hosting page.

    python notebooks/store.py [NAME …]

Needs nbclient and ipykernel (the extras ``notebooks`` and ``dev``). Pictures are stored with 256 colours.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
PICTURE = re.compile(r"(data:image/png;base64,)([\w+/=]+)")


def shrink(picture: str) -> str:
    """Return a PNG, both in base64, with a palette in place of full colours."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        small = io.BytesIO()
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return min(base64.b64encode(small.getvalue()).decode(), picture, key=len)


def store(path: Path) -> None:
    """Execute one notebook and write it with its outputs."""
    os.environ["TQDM_DISABLE"] = "1"  # a slow machine would store bars that wait two seconds before they show
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=3600, record_timing=False, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}
    ).execute()
    notebook.metadata.language_info = {"name": "python"}  # without the patch version of whoever ran it
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = shrink(data["image/png"])
            if "text/html" in data:
                data["text/html"] = PICTURE.sub(lambda found: found[1] + shrink(found[2]), data["text/html"])
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in HERE.glob("*.ipynb")):
        print(name)
        store(HERE / f"{name}.ipynb")
