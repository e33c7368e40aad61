"""A resident part that lies on the training device reads what it read before."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from tiny import resident

from selfsup.data import TrainLoader
from selfsup.data import resident as module
from selfsup.data.resident import ResidentDataset, fits
from selfsup.types import Normalization


def part() -> ResidentDataset:
    images = torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = resident(
        images,
        torch.arange(20) % 3,
        name="drawn",
        split="train",
        image_size=4,
        normalization=Normalization((0.5,) * 3, (0.2,) * 3),
        masks=images[:, 0],
    )
    return whole.subset(torch.tensor([3, 19, 7, 11, 2, 5]))


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")],
        ),
    ],
)
def test_batches_are_the_same(device: str) -> None:
    before = part()
    after = before.on(torch.device(device))
    batches = zip(TrainLoader(before, 2, 0), TrainLoader(after, 2, 0), strict=True)
    for one, other in batches:
        assert other.image.device.type == device
        assert torch.equal(one.image, other.image.cpu())
        assert torch.equal(one.label, other.label)
        assert torch.equal(one.index, other.index)
    positions = torch.tensor([4, 0])
    assert torch.equal(before.read_masks(positions), after.read_masks(positions))
    nested = torch.tensor([5, 1, 2])
    assert torch.equal(before.subset(nested).read(positions[1:]), after.subset(nested).read(positions[1:]).cpu())


def test_a_quarter_of_the_free_memory_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = part()
    assert dataset.nbytes == 6 * 3 * 4 * 4
    free = {"bytes": 4 * dataset.nbytes}
    fake = SimpleNamespace(mem_get_info=lambda device: (free["bytes"], 10**9))
    monkeypatch.setattr(module.torch, "cuda", fake)
    assert fits(dataset, torch.device("cuda"))
    free["bytes"] -= 1
    assert not fits(dataset, torch.device("cuda"))
    assert not fits(dataset, torch.device("cpu"))  # there it already is


def test_facts_go_with_every_part_and_fit_the_images():
    few = part()
    assert few.facts == few.subset(torch.arange(2)).facts == few.on(torch.device("cpu")).facts
    with pytest.raises(ValueError, match="3 channels"):
        ResidentDataset(few.read(torch.arange(2)), None, dataclasses.replace(few.facts, channels=1))
