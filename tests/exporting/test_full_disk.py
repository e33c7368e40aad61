"""What is taken away or compared on a full disk is refused in a sentence that names the file, and leaves nothing."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny import TINY

import selfsup
from selfsup.engine.training import train
from selfsup.errors import UserError

SHORT = [*TINY, "trainer.max_epochs=1", "online.every_epochs=0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a second that no test may change."""
    return train(selfsup.load_config([*SHORT, f"run_dir={tmp_path_factory.mktemp('full') / 'run'}"]))


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refused(write: Callable[[Path], object], out: Path, size: int) -> None:
    """Nothing stays of it, and it is written as soon as there is room."""
    with pytest.raises(UserError, match=rf"{out.name} could not be written \(.*\); make room"), full_disk(size):
        write(out)
    assert list(out.parent.iterdir()) == []
    write(out)
    assert out.exists()


@pytest.mark.parametrize("size", [0, 20_000])
@pytest.mark.parametrize("name", ["torchscript.pt", "exported.pt2", "onnx.onnx", "safetensors"])
def test_an_export(name: str, size: int, trained: Path, tmp_path: Path) -> None:
    if name.startswith("onnx"):
        pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    refused(lambda out: selfsup.export(trained, Path(name).stem, out), tmp_path / name, size)


@pytest.mark.parametrize("name", ["features.npz", "features.parquet"])
def test_embeddings(name: str, trained: Path, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="the extra 'parquet' is not installed")
    settings = [f"checkpoint={trained}", "accelerator=cpu"]
    refused(lambda out: selfsup.embed(settings, out, progress=False), tmp_path / name, 0)


@pytest.mark.parametrize("name", ["comparison.md", "comparison.csv", "comparison.html"])
def test_a_comparison_keeps_what_was_there(name: str, trained: Path, tmp_path: Path) -> None:
    from selfsup.report import comparing

    table = comparing.read_table([trained])
    comparing.save_comparison(table, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    largest = len(before[name])
    with full_disk(largest - 1), pytest.raises(UserError, match=r"could not be written \(File too large\)"):
        comparing.save_comparison(table, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
