"""Whatever lies in a folder of images is read, or left out with a reason and counted; the others keep their index."""

from __future__ import annotations

import io
import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from selfsup.config import load_config
from selfsup.data import FileDataset, TrainLoader, load_splits
from selfsup.data.decode import decode_image
from selfsup.data.form import UndecodableError

SIDE = 12
PICTURE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)


def written(kind: str, mode: str = "RGB", **more: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(file, kind, **more)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes whose head declares 60,000 × 60,000 pixels."""
    content = bytearray(written("PNG"))
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


KINDS = {kind: written(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX")}

changes = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("bit"), st.integers(0, 2**30)),
    st.tuples(st.just("fill"), st.floats(0, 1)),
    st.tuples(st.just("head"), st.binary(max_size=24)),
    st.tuples(st.just("more"), st.binary(max_size=24)),
    st.tuples(st.just("number"), st.tuples(st.integers(0, 2**30), st.sampled_from([b"\xff" * 4, b"\0" * 4]))),
)


def changed(content: bytes, what: str, how: object) -> bytes:
    out = bytearray(content)
    if what == "cut":
        return bytes(out[: int(how * len(out))])
    if what == "bit":
        out[(how // 8) % len(out)] ^= 1 << how % 8
    if what == "fill":
        start = int(how * len(out))
        out[start : start + 40] = bytes(len(out[start : start + 40]))
    if what == "head":
        out[: len(how)] = how
    if what == "more":
        out += how
    if what == "number":
        at, number = how
        start = at % max(1, len(out) - 4)
        out[start : start + 4] = number
    return bytes(out)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(changes, min_size=1, max_size=3))
def test_a_damaged_file_is_an_image_or_undecodable(kind: str, damage: list[tuple[str, object]]) -> None:
    content = KINDS[kind]
    for what, how in damage:
        content = changed(content, what, how) or b""
        if not content:
            break
    try:
        image = decode_image(content, SIDE, max_pixels=2**22)
    except UndecodableError as error:
        reason = error.reason
    else:
        reason = "none"
        assert image.dtype == torch.uint8
        assert image.shape == (3, SIDE, SIDE)
    assert reason.splitlines() == [reason]


def frames() -> bytes:
    file = io.BytesIO()
    pages = [Image.new("RGB", (20, 24), colour) for colour in ("red", "blue")]
    pages[0].save(file, "GIF", save_all=True, append_images=pages[1:])
    return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return written("JPEG", exif=exif)


GOOD: dict[str, Callable[[], bytes]] = {
    "animated.gif": frames,
    "alpha.png": lambda: written("PNG", "RGBA"),
    "cmyk.jpg": lambda: written("JPEG", "CMYK"),
    "grey.png": lambda: written("PNG", "L"),
    "palette.png": lambda: written("PNG", "P"),
    "turned.jpg": turned,
    "really_a.png": lambda: written("JPEG"),
    "Käse 猫 \u202e.png": lambda: written("PNG"),
    f"{'n' * 240}.png": lambda: written("PNG"),
}
BAD: dict[str, Callable[[], bytes]] = {
    "bomb.png": bomb,
    "empty.png": lambda: b"",
    "page.jpg": lambda: b"<html>not found</html>",
    "short.jpg": lambda: written("JPEG")[:300],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    root.mkdir()
    for name, content in {**GOOD, **BAD}.items():
        (root / name).write_bytes(content())
    (root / "up").symlink_to(root)
    (root / "gone.png").symlink_to(root / "nowhere.png")
    (root / "loop_a.png").symlink_to(root / "loop_b.png")
    (root / "loop_b.png").symlink_to(root / "loop_a.png")
    return root


def words(root: Path, *more: str) -> list[str]:
    return [
        "data=image_folder",
        f"data.root={root}",
        "data.image_size=12",
        "data.holdout=0",
        "data.test_fraction=0",
        "data.max_aspect=1",
        *more,
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_of_everything(folder: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    """Each good image comes with its own index, epoch after epoch; what is bad is counted by its reason."""
    config = load_config(["method=simclr", *words(folder, "data.resident_limit_mb=0", "data.max_undecodable=0.4")])
    part = load_splits(config.data).pretrain
    assert isinstance(part, FileDataset)
    names = [part.row_name(row) for row in part.index.tolist()]
    assert sorted(names) == sorted([*GOOD, *BAD])
    alone = {name: decode_image(content(), SIDE) for name, content in GOOD.items()}
    loader = TrainLoader(part, 4, seed=0, workers=workers, epochs=2)
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        for batch in loader:
            for image, index in zip(batch.image, batch.index.tolist(), strict=True):
                assert torch.equal(image, alone[names[index]]), names[index]
    counts = part.undecodable()
    assert sum(counts.values()) == len(BAD)
    assert any("pixels" in reason for reason in counts)
    assert "empty" in counts


def test_files_that_go_or_change_while_it_trains(tmp_path: Path) -> None:
    for number in range(12):
        Image.fromarray(np.full((SIDE, SIDE, 3), 10 * number, np.uint8)).save(tmp_path / f"{number:02}.png")
    config = load_config(["method=simclr", *words(tmp_path, "data.resident_limit_mb=0", "data.max_undecodable=0.2")])
    part = load_splits(config.data).pretrain
    loader = TrainLoader(part, 4, seed=0, epochs=3)
    for epoch in range(3):
        if epoch == 1:
            (tmp_path / "03.png").unlink()
            (tmp_path / "07.png").write_bytes(b"being written")
        seen = [
            (int(i), int(image.max())) for batch in loader for image, i in zip(batch.image, batch.index, strict=True)
        ]
        assert all(value == 10 * index for index, value in seen), epoch
        if epoch == 2:  # the epoch between has begun before
            assert not {3, 7} & {index for index, _ in seen}
    assert sum(part.undecodable().values()) == 2


def test_a_folder_that_cannot_be_entered_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open", "shut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(written("PNG"))
    scan = os.scandir

    def refusing(path: object = ".") -> object:
        if str(path).rstrip("/").endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "scandir", refusing)
    config = load_config(["method=simclr", *words(tmp_path)])
    splits = load_splits(config.data)
    assert splits.found is not None
    said = "\n".join(splits.found.lines())
    assert len(splits.pretrain) == 1
    assert "shut" in said, said
