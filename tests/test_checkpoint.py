"""Reading checkpoints that a disk or a copy has changed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from selfsup.checkpoint import read_tensors
from selfsup.errors import UserError


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else bool(one == two)


def test_no_flipped_bit_gives_other_numbers(tmp_path: Path) -> None:
    """Without the checksums about half of these would be read, and give other weights."""
    whole, file = tmp_path / "whole.ckpt", tmp_path / "flipped.ckpt"
    content = {"state_dict": {"w": torch.randn(40, 10), "b": torch.arange(30)}, "epoch": 3, "name": "simclr"}
    torch.save(content, whole)
    draw, refused = random.Random(0), list[str]()
    for _ in range(300):
        bits = bytearray(whole.read_bytes())
        place = draw.randrange(8 * len(bits))
        bits[place // 8] ^= 1 << place % 8
        file.write_bytes(bits)
        try:
            found = read_tensors(file)
        except UserError as error:
            refused.append(str(error))
        else:
            assert equal(content, found), place
    assert len(refused) > 100
    assert not any("\n" in message for message in refused)
    assert equal(content, read_tensors(whole))


def test_a_part_that_has_changed_is_named(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"w": torch.full((100,), 7.0)}, file)
    file.write_bytes(file.read_bytes().replace(torch.tensor(7.0).numpy().tobytes() * 3, b"\0" * 12, 1))
    with pytest.raises(UserError, match=r"is damaged: its part \S+ is not what was written"):
        read_tensors(file)


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    content = {"w": torch.randn(5)}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, tmp_path / "without.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    for name in ("old.pth", "without.pth"):
        assert equal(content, read_tensors(tmp_path / name))
