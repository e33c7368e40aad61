"""Too little memory is one sentence that names what to lower, on every command, and nothing is lost."""

from __future__ import annotations

import io
import mmap
import re
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import processes
import pytest
import torch
from PIL import Image
from tiny import TINY

from selfsup import checkpoint, shortage
from selfsup.cli import main
from selfsup.config import load_config
from selfsup.data.decode import decode_image
from selfsup.data.form import UndecodableError
from selfsup.engine.training import train
from selfsup.errors import UserError
from selfsup.eval import Encoder
from selfsup.eval.record import Record
from selfsup.methods import Method
from selfsup.shortage import ShortageError, enough_memory, lacks_memory, machine_lacks_memory
from selfsup.writing import replacing

GPU = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.72 GiB of which 1 GiB is free."
)


def raised(function: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as found:  # noqa: PT011 what it is, is what is looked at
        function()
    return found.value


def no(*_: Any, **__: Any) -> NoReturn:
    raise GPU


# What each library says; the first three are said here and now.
@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (raised(lambda: torch.empty(2**55)), "it asked for another 1.44e+08 GB"),
        (raised(lambda: np.empty(2**55)), "it asked for another 256. PiB"),
        (raised(lambda: mmap.mmap(-1, 2**60)), "Cannot allocate memory"),
        (GPU, "it asked for another 2.00 GiB"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "ALLOC_FAILED"),
        (RuntimeError("Error in allocMemory: alloc fail (cudaMalloc error out of memory [2])"), "cudaMalloc"),
        (RuntimeError("std::bad_alloc"), "std::bad_alloc"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (RuntimeError("Caught _ArrayMemoryError in DataLoader worker process 0."), "worker process 0"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "pid 7"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "temporarily unavailable"),
        (MemoryError(), "MemoryError"),
        (ValueError("Input array could not be made C-contiguous"), "C-contiguous"),
    ],
)
def test_what_libraries_say_is_understood(error: Exception, asked: str) -> None:
    assert lacks_memory(error)
    with pytest.raises(ShortageError, match=re.escape(asked)) as found, enough_memory("the walk", "lower the sky"):
        raise error
    assert str(found.value).startswith("the walk needs more memory than there is (")
    assert "): lower the sky" in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        ValueError("out of memory"),
        OSError(28, "No space left on device"),
        BlockingIOError(11, "write could not complete without blocking"),
        UserError("the words out of memory, in a sentence"),
        KeyError("memory"),
    ],
)
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert not lacks_memory(error)
    with pytest.raises(type(error)) as found, enough_memory("the walk", "lower the sky"):
        raise error
    assert found.value is error


def test_libraries_that_do_not_fit_need_no_smaller_batch() -> None:
    error = ImportError("libtorch_cpu.so: failed to map segment from shared object")
    assert "the libraries alone do not fit" in shortage.sentence("this", error, "lower batch_size")
    assert "batch_size" not in shortage.sentence("this", error, "lower batch_size")


def test_an_image_is_not_damaged_because_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the image would be left out, and the run would go on without it."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    monkeypatch.setattr("selfsup.data.decode._upright", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(UndecodableError):
        decode_image(file.getvalue(), 4)  # there is memory: the file asked for what no image of its size needs
    monkeypatch.setattr(shortage.mmap, "mmap", lambda *_: (_ for _ in ()).throw(OSError(12, "Cannot allocate memory")))
    with pytest.raises(MemoryError, match="for the pixels of an image"):
        decode_image(file.getvalue(), 4)


def test_a_checkpoint_is_not_damaged_because_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.zeros(3)}, tmp_path / "a.pth")
    error = raised(lambda: torch.empty(2**55))
    monkeypatch.setattr(torch, "load", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(UserError, match="is not a checkpoint, or is truncated"):
        checkpoint.read_tensors(tmp_path / "a.pth")  # there is memory: the file asks for an absurd size
    monkeypatch.setattr(shortage.mmap, "mmap", lambda *_: (_ for _ in ()).throw(OSError(12, "Cannot allocate memory")))
    assert machine_lacks_memory(error)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        checkpoint.read_tensors(tmp_path / "a.pth")


def test_what_is_written_when_memory_ends_is_as_before(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("before")

    def write() -> None:
        with replacing(file) as draft:
            draft.write_text("half")
            torch.empty(2**55)

    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):  # and no word of the disk
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert file.read_text() == "before"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    return train(load_config(["method=simclr", *TINY, "trainer.max_epochs=1", f"run_dir={folder}"]))


def sentences(err: str) -> list[str]:
    """What was said, but for notes and progress bars."""
    return [line for line in err.splitlines() if line and not line.startswith("note: ") and "%|" not in line]


def said_by(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence that a command ends with."""
    capsys.readouterr()
    code = main(list(words))
    lines = sentences(capsys.readouterr().err)
    assert code == 2
    assert len(lines) == 1, lines
    assert "needs more memory than there is (it asked for another 2.00 GiB)" in lines[0]
    return lines[0]


def test_a_training_names_its_settings_and_keeps_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "method=simclr", *TINY, f"run_dir={tmp_path / 'run'}"]
    step = Method.training_step

    def full(self: Method, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step >= at:
            raise GPU
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Method, "training_step", full)
        at = 0
        said = said_by(capsys, *words)
        for part in (
            "lower batch_size (16) or data.image_size (32)",
            "trainer.activation_checkpointing=true or trainer.chunk_size=8",
            "nothing is saved yet",
        ):
            assert part in said
        at = 5
        said = said_by(capsys, *words, "resume=auto")
        assert f"{tmp_path / 'run'}/checkpoints/last.ckpt is unharmed" in said
        assert f"selfsup train resume={tmp_path / 'run'} goes on from it" in said
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert checkpoint.read_checkpoint(last)["global_step"] == 4
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".new", ".tmp"))]
    assert main(["train", f"resume={tmp_path / 'run'}", "trainer.activation_checkpointing=true"]) == 0
    assert checkpoint.read_checkpoint(last)["global_step"] == 8


@pytest.mark.parametrize(
    ("place", "settings", "named"),
    [
        ("selfsup.engine.callbacks.extract_features", [], "the online evaluation .*online.every_epochs=0"),
        ("selfsup.engine.compilation.rehearse", ["trainer.compile=true"], "trainer.compile .*trainer.compile=false"),
        ("selfsup.engine.training.load_splits", [], "this command .*data.workers"),
    ],
)
def test_what_a_training_does_besides_names_its_own_settings(
    place: str,
    settings: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(place, no)
    words = ["train", "method=simclr", *TINY, *settings, f"run_dir={tmp_path / 'run'}"]
    said = said_by(capsys, *words)
    assert re.search(named, said), said


COMMANDS = {
    "evaluate": ["evaluate", "RUN", "eval.cache=false"],
    "knn": ["knn", "RUN", "eval.cache=false"],
    "probe": ["probe", "RUN", "eval.cache=false"],
    "embed": ["embed", "RUN", "--out", "OUT/features.npz"],
    "neighbours": ["neighbours", "RUN", "run_dir=OUT/found", "eval.cache=false"],
    "transfer": ["transfer", "RUN", "data=shapes", "run_dir=OUT/found", "data.train_size=40"],
    "export": ["export", "RUN", "--format", "safetensors", "--out", "OUT/backbone"],
    "doctor": ["doctor", "method=simclr", *TINY],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_it_in_one_sentence(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.setattr(Encoder, "passes", no)
    monkeypatch.setattr("selfsup.exporting.trained.open_network", no, raising=False)
    monkeypatch.setattr("selfsup.doctor.bench.load_splits", no, raising=False)
    words = [word.replace("RUN", str(run)).replace("OUT", str(tmp_path)) for word in COMMANDS[name]]
    said = said_by(capsys, *words)
    less = {"export": "end other programs", "doctor": "lower batch_size"}
    assert less.get(name, "lower eval.batch_size, data.image_size or data.workers") in said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_protocols_that_fit_are_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    monkeypatch.setattr("selfsup.eval.protocols.clustering.spherical_kmeans", no)
    said = said_by(capsys, "evaluate", str(folder), "--only", "clustering,knn", "eval.figures=false")
    assert "Left out: clustering (the evaluation needs more memory" in said
    from selfsup.eval import read_results

    found: list[Record] = read_results(folder)
    assert {"knn"} <= {record["protocol"] for record in found}


def limited(words: list[str]) -> int:
    """Run a command with a few more megabytes of addresses than the process has by now."""
    room, *rest = words
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * mmap.PAGESIZE + int(room) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return main(rest)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and ulimit -v")
def test_under_a_limit_of_addresses(tmp_path: Path) -> None:
    """A real one: activations of a few hundred megabytes where 48 are free."""
    words = ["train", "method=simclr", *TINY, "batch_size=64", "data.image_size=96", "run_dir=run"]
    done = processes.Running(limited, ["48", *words], tmp_path).wait()
    lines = sentences(done.stderr)
    assert done.returncode == 2, done
    assert len(lines) == 1, lines
    assert "needs more memory than there is" in lines[0]
    assert "ulimit -v" in lines[0]
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".new", ".tmp", ".ckpt"))]
