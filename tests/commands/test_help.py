"""Help that explains: every setting with its value and its sentence, and the short forms of common ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import selfsup.data
import selfsup.methods  # noqa: F401 - fills the registries
from selfsup.cli import main
from selfsup.config import EvaluateConfig, TrainConfig, from_values, load_config
from selfsup.registry import Entry, methods, sources
from selfsup.settings.described import settings


def _is_ours(entry: Entry[Any]) -> bool:
    return str(entry.target.__module__).startswith("selfsup.")


def test_every_setting_has_one() -> None:
    # not those that other tests of this process have registered
    ours = [(kind, name) for kind in (methods, sources) for name in kind if _is_ours(kind[name])]
    configs: list[Any] = [kind[name].config() for kind, name in ours]
    configs += [TrainConfig(), EvaluateConfig()]
    assert {key for config in configs for key, _, sentence in settings(config) if not sentence} == set()


def test_help_explains_what_was_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "method=MoCo", "data=image_folder", "--help"]) == 0
    out = capsys.readouterr().out
    assert "method.queue_size=65536\n      Number of keys kept" in out
    assert "data.max_undecodable=" in out
    assert "trainer." not in out
    assert main(["train", "optimizer.lr=0.7", "--help"]) == 0
    out = capsys.readouterr().out
    assert "  optimizer.lr=0.7\n" in out
    assert "  batch_size=" in out
    assert "method." not in out
    assert main(["knn", "data=digits", "--help"]) == 0
    assert "data.image_size=16" in capsys.readouterr().out
    assert main(["train", "metod=moco", "--help"]) == 2
    assert "Did you mean 'method=moco'" in capsys.readouterr().err


def test_a_source_is_explained_as_a_method_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 0
    assert {line.partition(" ")[0] for line in capsys.readouterr().out.splitlines()} >= {"image_folder", "cifar10"}
    assert main(["data", "Image-Folder"]) == 0
    assert "data.max_undecodable=" in capsys.readouterr().out
    assert main(["data", "image_foldr"]) == 2
    assert "Did you mean 'image_folder'" in capsys.readouterr().err
    assert main(["data", "a", "b"]) == 2
    assert main(["protocols", "Linear-Probe"]) == 0
    assert "eval.linear_probe.epochs=" in capsys.readouterr().out
    assert main(["protocols", "diagnostics"]) == 0
    assert main(["protocols", "knnn"]) == 2
    assert "Did you mean 'knn'" in capsys.readouterr().err


def test_short_forms_and_the_printed_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--epochs", "3", "--batch-size=64", "--lr", "0.5"]
    assert main(["train", "method=byol", *short, "seed=4", "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    long = ["method=byol", "trainer.max_epochs=3", "batch_size=64", "optimizer.lr=0.5", "seed=4"]
    assert from_values(printed) == load_config(long)
    (tmp_path / "pictures").mkdir()
    assert main(["train", "--data", str(tmp_path / "pictures"), "--print-config"]) == 0
    data = yaml.safe_load(capsys.readouterr().out)["data"]
    assert (data["name"], data["root"]) == ("image_folder", str(tmp_path / "pictures"))
    assert main(["train", "--lr", "1", "optimizer.lr=2"]) == 2
    assert "optimizer.lr= is also given in its short form" in capsys.readouterr().err
    assert main(["train", "--data", "nowhere"]) == 2
    assert "'nowhere' is not a setting" in capsys.readouterr().err
