"""Overrides of a sweep: checked before it starts, and each value arrives in its job as it stands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from selfsup.cli import main
from selfsup.config import TrainConfig
from selfsup.data import load_splits
from selfsup.engine import training
from selfsup.engine.sweeps import sweep_words
from selfsup.errors import UserError
from selfsup.settings.values import from_hydra, hydra_word, parse

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) | st.text(
    "'\"\\${}[](),:=%?!~ #&@\n\tüa1", max_size=12
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b_c", "D1"]), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(VALUES)
@example("\\\n")
@example("%24$")
def test_any_value_reaches_the_job_of_a_sweep(value: Any) -> None:
    word = parse(f"key={hydra_word(value)}")
    assert not word.is_sweep_override()
    assert from_hydra(word.value()) == value
    first = next(parse(f"key={hydra_word(value)},other").sweep_string_iterator())  # as Hydra hands it to the job
    assert from_hydra(parse(f"key={first}").value()) == value


def test_nasty_folders_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in one sweep, through Hydra, its sweeper and its launcher, to real folders."""
    seen = []

    def look(config: TrainConfig) -> Path:
        seen.append((config.data.root, len(load_splits(config.data).pretrain)))
        return tmp_path

    monkeypatch.setattr(training, "train", look)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["selfsup"])
    names = ["写真 it's ü", "a=b, [c] {d: #&", "${oc.env:HOME}%24\\"]
    for name in names:
        for number in range(12):
            path = tmp_path / name / f"{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (12 * number, 0, 0)).save(path)
    roots = ",".join(f'"{name}"' for name in names)
    assert main(["train", "--multirun", "data=image_folder", "data.image_size=16", f"data.root={roots}"]) == 0
    assert sorted(root for root, _ in seen) == sorted(names)
    assert all(images > 0 for _, images in seen)


def test_a_sweep_is_checked_before_it_starts() -> None:
    words = sweep_words(
        ["method=SimCLR,moco", "optimizer.lr=0.1,0.2", "augment.counts=2", "run_dir=a/ü b", "seed=0, 1"]
    )
    assert words[0] == "method=simclr,moco"
    assert words[1:] == ["optimizer.lr=0.1,0.2", "augment.counts=[2]", "run_dir='a/ü b'", "seed=0,1"]
    assert "seed=range(0,3)" in sweep_words(["seed=range(0,3)"])
    for wrong, said in (
        ("seed=0,x", "seed is 'x'"),
        ("method.queue_size=9", "method.queue_size"),
        ("lr=1", "optimizer.lr"),
    ):
        with pytest.raises(UserError, match=said):
            sweep_words(["method=moco,simclr", wrong])
    with pytest.raises(UserError, match="Did you mean 'simclr'"):
        sweep_words(["method=moco,simclrr"])
