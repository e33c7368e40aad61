import itertools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import resident

from selfsup.data import FileDataset, TrainLoader, eval_batches
from selfsup.data.crashes import Reading, crash_of
from selfsup.data.encoded import Decoding
from selfsup.data.loader import Share
from selfsup.errors import UserError
from selfsup.shortage import lacks_memory
from selfsup.types import ImageFacts, Normalization

_STATISTICS = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _resident(count, channels=3):
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, channels, 4, 4).contiguous()
    return resident(images, torch.arange(count) * 2, name="n", split="train", image_size=4, normalization=_STATISTICS)


def _files(folder, count, broken=(), allowed=0.5):
    for number in range(count):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(folder / f"{number:03}.png")
    for number in broken:
        (folder / f"{number:03}.png").write_bytes(b"no image")
    return FileDataset(
        folder,
        [f"{number:03}.png" for number in range(count)],
        torch.arange(count) * 2,
        ImageFacts("n", "train", 3, 4, _STATISTICS),
        decoding=Decoding(max_undecodable=allowed),
    )


def _consistent(batch):
    assert torch.equal(batch.image[:, 0, 0, 0].long(), batch.index)
    assert torch.equal(batch.label, batch.index * 2)


def _indices(batches):
    return [batch.index.tolist() for batch in batches]


def test_an_epoch_sees_each_image_at_most_once_and_drops_the_rest():
    loader = TrainLoader(_resident(23), 5, seed=0)
    batches = list(loader)
    assert len(batches) == len(loader) == 4
    seen = list(itertools.chain(*_indices(batches)))
    assert len(set(seen)) == 20
    for batch in batches:
        _consistent(batch)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_see_what_one_process_sees(world_size):
    alone = _indices(TrainLoader(_resident(40), 12, seed=1))
    shares = [_indices(TrainLoader(_resident(40), 12, 1, Share(rank, world_size))) for rank in range(world_size)]
    assert [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == alone


def test_order_follows_seed_and_epoch():
    loader = TrainLoader(_resident(40), 10, seed=0)
    first, second = _indices(loader), _indices(loader)
    assert first != second
    assert first == _indices(TrainLoader(_resident(40), 10, seed=0))
    assert first != _indices(TrainLoader(_resident(40), 10, seed=1))
    assert second == _indices(TrainLoader(_resident(40), 10, seed=0, position=lambda: (1, 0)))
    # neighbouring seeds do not run through the same orders one epoch later
    assert second != _indices(TrainLoader(_resident(40), 10, seed=1))


def test_the_order_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(TrainLoader(_resident(40), 10, seed=0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("done", [0, 1, 3])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_resumed_epoch_is_the_exact_rest(tmp_path, streamed, done):
    dataset = _files(tmp_path, 40) if streamed else _resident(40)
    whole = _indices(TrainLoader(dataset, 10, 0, position=lambda: (2, 0)))
    assert _indices(TrainLoader(dataset, 10, 0, position=lambda: (2, done))) == whole[done:]


def test_position_is_asked_at_the_first_batch():
    place = (0, 0)
    loader = TrainLoader(_resident(40), 10, 0, position=lambda: place)
    iterator = iter(loader)
    place = (5, 2)  # what a restored checkpoint sets after Lightning has made the iterator
    assert _indices(iterator) == _indices(TrainLoader(_resident(40), 10, 0, position=lambda: (5, 2)))


def test_lightning_takes_the_loader_for_resumable():
    from lightning_fabric.utilities.types import _Stateful  # what its fit loop asks

    loader = TrainLoader(_resident(40), 10, 0)
    assert isinstance(loader, _Stateful)
    loader.load_state_dict(loader.state_dict())


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_equals_resident(tmp_path, workers):
    torch.manual_seed(0)
    streamed = list(TrainLoader(_files(tmp_path, 30), 8, 0, workers=workers))
    state = torch.get_rng_state()
    resident = list(TrainLoader(_resident(30), 8, 0))
    assert len(streamed) == len(resident) == 3
    for ours, theirs in zip(streamed, resident, strict=True):
        assert torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.label, theirs.label)
        assert torch.equal(ours.index, theirs.index)
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())  # workers are started without the global generator


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_files_are_replaced_in_training(tmp_path, caplog, workers):
    dataset = _files(tmp_path, 30, broken=(4, 5, 29))
    loader = TrainLoader(dataset, 10, 0, workers=workers)
    for _ in range(2):
        batches = list(loader)
        assert [len(batch.index) for batch in batches] == [10, 10, 10]
        for batch in batches:
            _consistent(batch)
            assert not {4, 5, 29} & set(batch.index.tolist())
        seen = sorted(itertools.chain(*_indices(batches)))
        assert seen.count(6) == 3  # itself, and for 4 and 5
        assert seen.count(0) == 2  # the next after the last is the first
    logged = [record.getMessage() for record in caplog.records]
    assert sorted(name for name in ("004", "005", "029") for line in logged if f"{name}.png" in line) == [
        "004",
        "005",
        "029",
    ]  # once each, over both epochs


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_files_are_left_out_of_evaluation(tmp_path, workers):
    dataset = _files(tmp_path, 11, broken=(0, 4, 5, 10))
    batches = list(eval_batches(dataset, 2, workers))
    for batch in batches:
        _consistent(batch)
    assert list(itertools.chain(*_indices(batches))) == [1, 2, 3, 6, 7, 8, 9]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("read", [lambda d, w: TrainLoader(d, 4, 0, workers=w), lambda d, w: eval_batches(d, 4, w)])
def test_too_many_undecodable_files_stop_the_run(tmp_path, workers, read):
    dataset = _files(tmp_path, 20, broken=(3, 7, 11), allowed=0.1)
    with pytest.raises(UserError, match=r"^3 of 20 images .* raise data.max_undecodable above 0.1.$"):
        list(read(dataset, workers))


def test_eval_batches_drop_nothing_and_keep_the_order():
    batches = list(eval_batches(_resident(23).subset(torch.tensor([5, 3, 8, 1])), 3))
    assert _indices(batches) == [[5, 3, 8], [1]]
    for batch in batches:
        _consistent(batch)


def test_batches_without_labels():
    dataset = resident(
        torch.zeros(4, 1, 2, 2, dtype=torch.uint8), None, name="n", split="t", image_size=2, normalization=_STATISTICS
    )
    assert next(eval_batches(dataset, 4)).label is None


@pytest.mark.parametrize(
    ("batch_size", "world_size", "message"),
    [(24, 1, "only 23 training images"), (10, 4, "multiple of 4"), (0, 1, "at least 1")],
)
def test_impossible_batch_sizes(batch_size, world_size, message):
    with pytest.raises(UserError, match=message):
        TrainLoader(_resident(23), batch_size, 0, Share(0, world_size))


def test_no_tensor_is_shared_on_its_way_to_the_workers(tmp_path, monkeypatch):
    """A process forked while another thread shares a tensor inherits its lock, which nobody there will open."""
    shared = []  # of this process: workers, which share the images, have copies
    original = torch.UntypedStorage._share_fd_cpu_

    def share(storage, *args, **kwargs):
        shared.append(storage.nbytes())
        return original(storage, *args, **kwargs)

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", share)
    dataset = _files(tmp_path, 30)
    assert len(list(TrainLoader(dataset, 10, 0, workers=2))) == 3
    assert len(list(eval_batches(dataset, 10, 2))) == 3
    assert shared == []


def test_a_process_ends_though_its_workers_still_wait(tmp_path):
    """As where an iterator lies in a circle of references, or in a traceback, when Python ends."""
    _files(tmp_path, 12)
    script = f"""
import torch
from pathlib import Path
from selfsup.data import FileDataset, TrainLoader
from selfsup.types import ImageFacts, Normalization
facts = ImageFacts("n", "train", 3, 4, Normalization((0.5,) * 3, (0.5,) * 3))
names = [f"{{number:03}}.png" for number in range(12)]
kept = iter(TrainLoader(FileDataset(Path({str(tmp_path)!r}), names, torch.arange(12), facts), 4, 0, workers=1))
print(len(next(kept).image))
kept = kept, lambda: kept
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            signal.SIGSEGV,
            r"A worker that reads images crashed while it read \S+/007\.png \(signal 11\): take",
        ),
        (signal.SIGKILL, r"was killed while it read \S+/007\.png, .*lower data\.workers \(1\)"),
    ],
)
def test_a_worker_that_ends_is_told_with_its_file(tmp_path, monkeypatch, number, message):
    """A decoder that crashes on one file takes its worker with it; the kernel kills one that takes too much memory."""
    decode = FileDataset._decode

    def crashing(self, row):
        if row == 7:
            os.kill(os.getpid(), number)
        return decode(self, row)

    dataset = _files(tmp_path, 16)
    monkeypatch.setattr(FileDataset, "_decode", crashing)
    heard = signal.getsignal(signal.SIGCHLD)

    def read():
        for _ in eval_batches(dataset, 4, workers=1):
            time.sleep(0.2)  # as a step does, in which torch hears of it

    try:
        with pytest.raises(UserError, match=message) as told:
            read()
    finally:
        signal.signal(signal.SIGCHLD, heard)
    assert "\n" not in str(told.value)
    assert lacks_memory(told.value) == (number == signal.SIGKILL)


def test_a_worker_that_ends_while_it_hands_over_a_batch_is_told_too(tmp_path, monkeypatch):
    monkeypatch.setattr("selfsup.data.crashes._at_work", weakref.WeakSet())  # without the loaders of other tests
    reading, other = (Reading(_files(tmp_path, 16), 1) for _ in range(2))
    reading.rows[0] = 7
    process = multiprocessing.get_context("fork").Process(target=os.kill, args=(0, 0))
    process.run = lambda: os.kill(os.getpid(), signal.SIGSEGV)
    heard = signal.getsignal(signal.SIGCHLD)
    try:
        process.start()
        reading.watch([process])
        assert re.search(r"crashed while it read \S+/007\.png \(signal 11\)", str(crash_of(EOFError(), reading)))
        assert crash_of(EOFError(), other) is None, "a worker of another loader says nothing of this one's"
        assert crash_of(EOFError()) is None
    finally:
        signal.signal(signal.SIGCHLD, heard)
        process.join()
