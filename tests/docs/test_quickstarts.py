"""docs/folder.md and docs/checkpoint.md do what they say: every command of theirs runs, on a small scale."""

from __future__ import annotations

import json
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from page import Page
from PIL import Image

from selfsup.cli import main

#: What is written on the pages, and what runs in its place.
SMALL = {
    "backbone=resnet18": "backbone=resnet_tiny backbone.width=4",
    "vit_small_patch16_224.dino": "test_vit",
    "vit_small_patch16_224": "test_vit",
    "data.image_size=96": "data.image_size=16",
    "data.image_size=224": "data.image_size=32",
    "batch_size=128": "batch_size=8",
    "batch_size=64": "batch_size=8",
    "max_epochs=100": "max_epochs=1",
    "max_epochs=200": "max_epochs=2",
    "max_epochs=10 ": "max_epochs=1 ",
    "method=dino": "method=dino method.output_dim=24 method.hidden_dim=16 method.bottleneck_dim=8",
}
TRAINING = ["trainer.progress=false", "trainer.accelerator=cpu", "trainer.devices=1", "online.every_epochs=0"]
EVALUATION = ["eval.knn.k=[3]", "eval.linear_probe.epochs=2", "eval.figures=false", "accelerator=cpu"]
MORE = {"train": TRAINING, "knn": EVALUATION, "evaluate": EVALUATION, "neighbours": ["accelerator=cpu"]}


def small(text: str) -> str:
    for written, run in SMALL.items():
        text = text.replace(written, run)
    return text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photographs of two classes, and a process without network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    build = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **kwargs: build(name, **kwargs))
    draws = np.random.default_rng(0)
    for kind, shade in (("day", 150), ("night", 0)):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for number in range(24):
            pixels = draws.integers(shade, shade + 100, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / kind / f"{number}.png")
    return tmp_path


def run(page: Page, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Run all commands of a page and return what each printed."""
    printed = {}
    for command in page.commands:
        program, first, *words = shlex.split(small(command))
        if program == "python":
            runpy.run_path(first)
        else:
            assert program == "selfsup"
            code = main([first, *words, *MORE.get(first, [])])
            assert code == 0, (command, capsys.readouterr().err)
        printed[command] = capsys.readouterr().out
    return printed


def accuracies(run_dir: str) -> set[str]:
    records = json.loads(Path(run_dir, "results.json").read_text("utf-8"))["results"]
    return {record["protocol"] for record in records if record["metric"] == "top1" and 0 <= record["value"] <= 1}


def test_a_folder_of_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = Page("folder.md")
    page.write(folder)
    printed = run(page, capsys)
    assert "48 of 48 files in photos are read" in next(text for text in printed.values())
    assert all(accuracies(f"runs/{name}") == {"knn"} for name in ("photos", "raw_pixels", "untrained"))
    assert Path("comparison/comparison.html").is_file()
    assert Path("runs/photos/neighbours/neighbours.csv").is_file()
    first = printed["python search.py"].splitlines()[0]
    assert first.startswith("1.00  photos/")  # the image itself


def test_a_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = timm.create_model("test_vit", num_classes=0)
    weights = {f"module.backbone.{name}": value for name, value in network.state_dict().items()}
    torch.save({"teacher": weights}, "dino_deitsmall16_pretrain.pth")
    page = Page("checkpoint.md")
    for name, text in page.files.items():
        Path(name).write_text(small(text), "utf-8")
    printed = run(page, capsys)
    assert all(accuracies(f"runs/{name}") == {"knn", "linear_probe"} for name in ("timm", "dino", "further"))
    assert any("starts from timm:test_vit" in text for text in printed.values())
    assert Path("backbone.pth").is_file()
    assert "knn 20 " in printed["python judge.py"]


def test_every_stand_in_is_for_something() -> None:
    text = "\n".join(command for name in ("folder.md", "checkpoint.md") for command in Page(name).commands)
    assert [written for written in SMALL if written not in f"{text} "] == []
