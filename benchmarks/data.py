"""Images a second from every kind of source, beside torchvision's folder, and how long a training step waits for them.

    python benchmarks/data.py --folder /tmp/photos [--images 20000] [--parts read build step] [--delete]

Makes JPEGs of about 500×375 pixels once (the same for every run), and the same images as WebDataset shards and Parquet
files. ``read`` times passes over one draw of images, in turn, from starting the workers to the last batch; every rival
gives uint8 squares of 256 pixels. ``build`` times a cache, and reading it when the system holds none of it in memory.
``step`` trains SimCLR with a small network at 64 pixels and says which share of the time the step waited for data.
``--delete`` removes the folder at the end.
"""

from __future__ import annotations

import argparse
import gc
import io
import multiprocessing
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2
from tqdm import tqdm

from selfsup.augment import AugmentConfig, build_views
from selfsup.data import ImageDataset, TrainLoader, load_splits
from selfsup.functional import nt_xent
from selfsup.nn import BackboneConfig, build_backbone
from selfsup.nn.heads import projection_head
from selfsup.registry import sources

SIDE, BATCH, CLASSES, SHARD = 256, 128, 20, 1000
SCENES = 24  # large drawn scenes of which the photographs are parts


def scene(number: int) -> np.ndarray[Any, Any]:
    """Draw soft shapes and textures of several sizes: float32 ``[900,1200,3]``."""
    generator = np.random.default_rng(number)
    drawn = np.full((900, 1200, 3), 110, np.float32)
    for cells in (4, 10, 30, 90):
        coarse = generator.normal(size=(cells, cells * 4 // 3, 3)).astype(np.float32)
        layers = [Image.fromarray(coarse[..., c]).resize((1200, 900), Image.Resampling.BICUBIC) for c in range(3)]
        drawn += np.stack([np.asarray(layer) for layer in layers], -1) * 70 / cells**0.3
    return drawn


def photograph(number: int, scenes: list[np.ndarray[Any, Any]]) -> bytes:
    """Return the JPEG of a part of a scene with exposure and grain of its own, about 70 kB."""
    generator = np.random.default_rng(10_000 + number)
    width, height = int(generator.integers(470, 531)), int(generator.integers(350, 401))
    source = scenes[number % SCENES]
    top, left = generator.integers(0, 900 - height), generator.integers(0, 1200 - width)
    part = source[top : top + height, left : left + width] * generator.uniform(0.7, 1.2)
    grain = generator.standard_normal((height, width, 1), np.float32) * generator.uniform(5, 9)
    content = io.BytesIO()
    Image.fromarray((part + grain).clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=90)
    return content.getvalue()


_scenes: list[np.ndarray[Any, Any]] = []


def make(job: tuple[Path, int, int]) -> int:
    """Write the images ``begin`` to ``end`` as files, as a tar file and as a Parquet file; return how many."""
    import pyarrow
    import pyarrow.parquet

    folder, begin, end = job
    if not _scenes:
        _scenes.extend(scene(number) for number in range(SCENES))
    contents = [photograph(number, _scenes) for number in range(begin, end)]
    shard = f"{begin // SHARD:05}"
    with tarfile.open(folder / "webdataset" / f"{shard}.tar", "w") as tar:
        for number, content in zip(range(begin, end), contents, strict=True):
            (folder / "images" / f"{number % CLASSES:02}" / f"{number:06}.jpg").write_bytes(content)
            for ending, member in (("jpg", content), ("cls", str(number % CLASSES).encode())):
                info = tarfile.TarInfo(f"{number:06}.{ending}")
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))
    images = [{"bytes": content, "path": None} for content in contents]
    table = pyarrow.table({"image": images, "label": [number % CLASSES for number in range(begin, end)]})
    pyarrow.parquet.write_table(table, folder / "parquet" / f"{shard}.parquet", row_group_size=100)
    return end - begin


def generate(folder: Path, count: int) -> None:
    """Make the images unless they are there."""
    if (folder / f"complete-{count}").exists():
        return
    for below in ("webdataset", "parquet", *(f"images/{number:02}" for number in range(CLASSES))):
        (folder / below).mkdir(parents=True, exist_ok=True)
    jobs = [(folder, begin, min(begin + SHARD, count)) for begin in range(0, count, SHARD)]
    with multiprocessing.Pool() as pool, tqdm(total=count, desc="making photographs", unit="image") as bar:
        for made in pool.imap_unordered(make, jobs):
            bar.update(made)
    (folder / f"complete-{count}").touch()


def source(folder: Path, name: str, side: int = SIDE, cache: bool = False, **settings: Any) -> ImageDataset:
    """Return all the images of one of our sources, streamed or from its cache."""
    root = folder / ("images" if name == "image_folder" else name)
    given = {"source_size": side, "image_size": side, "holdout": 0.0, "test_fraction": 0.0, "resident_limit_mb": 0}
    kept = str(folder / "cache") if cache else None
    return load_splits(sources[name].config(root=str(root), cache=kept, **given, **settings)).train


def ours(dataset: ImageDataset, positions: torch.Tensor, workers: int) -> Callable[[], None]:
    """Read these images in batches."""

    def read() -> None:
        loader = TrainLoader(dataset.subset(positions), BATCH, 0, workers=workers, epochs=1)
        assert sum(len(batch.image) for batch in loader) == len(positions)

    return read


def torchvision(folder: Path, positions: torch.Tensor, workers: int, pillow: bool) -> Callable[[], None]:
    """Read as many through ``ImageFolder`` and ``DataLoader``, by Pillow or by torchvision's own decoder."""
    if pillow:
        steps = v2.Compose([v2.Resize(SIDE), v2.CenterCrop(SIDE), v2.PILToTensor()])
        dataset = ImageFolder(str(folder / "images"), steps)
    else:
        dataset = ImageFolder(
            str(folder / "images"),
            v2.Compose([v2.Resize(SIDE, antialias=True), v2.CenterCrop(SIDE)]),
            loader=lambda path: decode_image(path, mode=ImageReadMode.RGB),
        )

    def read() -> None:
        loader = DataLoader(Subset(dataset, positions.tolist()), BATCH, num_workers=workers)
        assert sum(len(images) for images, _ in loader) == len(positions)

    return read


def measure_reading(folder: Path, count: int, repeats: int) -> list[dict[str, Any]]:
    """Time every source over the same number of images."""
    files, cached = source(folder, "image_folder"), source(folder, "image_folder", cache=True)
    tars, tables = source(folder, "webdataset"), source(folder, "parquet")
    drawn = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))[:count]
    # Parquet's window gives whole groups of rows, so a fair part of it are whole groups, too
    groups = torch.randperm(len(files) // 100, generator=torch.Generator().manual_seed(0))[: -(-count // 100)]
    rows = (groups[:, None] * 100 + torch.arange(100)).flatten()[:count]
    rivals: dict[str, Callable[[], None]] = {}
    for workers in (0, 1, 2):
        rivals[f"image_folder, workers={workers}"] = ours(files, drawn, workers)
    rivals |= {
        "webdataset, workers=2": ours(tars, drawn, 2),
        "parquet, workers=2": ours(tables, rows, 2),
        "cached, workers=0": ours(cached, drawn, 0),
        "cached, one thread ahead": ours(cached, drawn, 2),
        "torchvision ImageFolder (Pillow), workers=2": torchvision(folder, drawn, 2, pillow=True),
        "torchvision ImageFolder (torchvision.io), workers=2": torchvision(folder, drawn, 2, pillow=False),
    }
    timed = measure.alternate(rivals, repeats)
    return [row(name, count, seconds) for name, seconds in timed.items()]


def measure_build(folder: Path, count: int, repeats: int) -> list[dict[str, Any]]:
    """Time the building of a cache of all images, and reads of it from the disk."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    begin = time.perf_counter()
    cached = source(folder, "image_folder", cache=True)
    found = [row("building the cache", len(cached), [time.perf_counter() - begin])]
    drawn = torch.randperm(len(cached), generator=torch.Generator().manual_seed(1))[:count]
    seconds = []
    for _ in range(repeats):
        del cached
        gc.collect()  # unmaps the file
        for path in (folder / "cache").glob("*/images.u8"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        cached = source(folder, "image_folder", cache=True)
        begin = time.perf_counter()
        ours(cached, drawn, 2)()
        seconds.append(time.perf_counter() - begin)
    return [*found, row("cached, not in memory", count, seconds)]


def row(name: str, images: int, seconds: list[float]) -> dict[str, Any]:
    """Return a row of the table."""
    median, low, high = (images / value for value in measure.summary(seconds))
    return {"source": name, "images a second": median, "slowest": high, "fastest": low}


def steps(dataset: ImageDataset, workers: int) -> Iterator[tuple[float, float]]:
    """Train, and yield for each step the seconds that it waited for its batch and those that it took with it."""
    torch.manual_seed(0)
    views = build_views(AugmentConfig(recipe="simclr"), 64, dataset.normalization)
    backbone = build_backbone(BackboneConfig(name="resnet", width=8, stem_stride=2), 3)
    network = torch.nn.Sequential(backbone, projection_head([backbone.dim, 128, 64]))
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9)
    batches = iter(TrainLoader(dataset, BATCH, 0, workers=workers, epochs=1))
    begin = time.perf_counter()
    for batch in batches:
        got = time.perf_counter()
        first, second = (network(view.image) for view in views(batch.image, 0, batch.index))
        optimizer.zero_grad()
        nt_xent(first, second, 0.2).backward()
        optimizer.step()
        done = time.perf_counter()
        yield got - begin, done - got
        begin = time.perf_counter()


def measure_steps(folder: Path, count: int, repeats: int) -> list[dict[str, Any]]:
    """Time training steps with each way of reading; the rivals take turns, a few steps each."""
    streamed, cached = source(folder, "image_folder", 64), source(folder, "image_folder", 64, cache=True)
    rivals = {
        "streamed, workers=0": (streamed, 0),
        "streamed, workers=1": (streamed, 1),
        "streamed, workers=2": (streamed, 2),
        "cached, one thread ahead": (cached, 1),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in rivals}
    for turn in range(repeats):
        for name, (dataset, workers) in rivals.items():
            part = torch.arange(turn * count, (turn + 1) * count) % len(dataset)
            times[name] += list(steps(dataset.subset(part), workers))[2:]  # the workers' start is no steady state
    found = []
    for name, pairs in times.items():
        waits, works = zip(*pairs, strict=True)
        totals = [wait + work for wait, work in pairs]
        found.append(
            row(f"step, {name}", BATCH * len(pairs), [sum(totals)])
            | {"slowest": None, "fastest": None}
            | {
                "waiting for data": f"{sum(waits) / sum(totals):.1%}",
                "step without waiting, s": float(np.median(works)),
            }
        )
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--read", type=int, default=1024, help="images of one timing")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="*", choices=("build", "read", "step"), default=["build", "read", "step"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--delete", action="store_true", help="remove the folder at the end")
    arguments = parser.parse_args()
    generate(arguments.folder, arguments.images)
    parts = {"build": measure_build, "read": measure_reading, "step": measure_steps}
    for name in arguments.parts:
        rows = parts[name](arguments.folder, arguments.read, arguments.repeats)
        protocol = f"`{name}`: {arguments.images} JPEGs, {arguments.read} images a timing, {arguments.repeats} repeats."
        print(measure.write(arguments.out, f"data_{name}", rows, protocol))
    if arguments.delete:
        shutil.rmtree(arguments.folder)


if __name__ == "__main__":
    main()
