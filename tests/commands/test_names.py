"""Checkpoints and folders are taken where they stand, and options anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import TINY

from selfsup.cli import main
from selfsup.engine import evaluation

EVALUATIONS = ["knn", "probe", "segmentation", "evaluate", "neighbours", "transfer", "embed"]
MORE = {"transfer": ["data=digits"], "embed": ["--out", "f.npz"]}


@pytest.mark.parametrize("command", EVALUATIONS)
def test_a_checkpoint_by_position(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    more = MORE.get(command, [])
    for words in (["runs/gone"], ["checkpoint=runs/gone"]):
        assert main([command, *words, *more]) == 2
        assert "There is no checkpoint runs/gone" in capsys.readouterr().err
    assert main([command, "a", "runs/lr=0.1", *more]) == 2  # a path that holds an equals sign is no setting
    err = capsys.readouterr().err
    assert "a and runs/lr=0.1" in err or "selfsup embed RUN" in err
    assert main([command, "timm:no_such_network", "data=digits", *more]) == 2
    assert "timm has no network 'no_such_network'" in capsys.readouterr().err
    assert main([command, "a", "checkpoint=b", *more]) == 2
    assert "a and b" in capsys.readouterr().err


def test_options_stand_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(evaluation, "open_evaluation", lambda settings: (settings, None))
    monkeypatch.setattr(evaluation, "evaluate_opened", lambda settings, _, names: taken.append((settings, names)) or [])
    monkeypatch.setattr(evaluation, "results_folder", lambda *_: None)
    about = ["data=digits", "data.limit=60", "eval.knn.k=[3]"]
    for words in (
        ["raw_pixels", "--only", "layers", *about],
        ["--only=layers", *about, "raw_pixels"],
        [*about, "raw_pixels", "--only", "layers"],
        [about[0], "--only", "layers", "checkpoint=raw_pixels", *about[1:]],
    ):
        assert main(["evaluate", *words]) == 2  # as nothing was measured
    assert taken == [(["checkpoint=raw_pixels", *about], ("layers",))] * 4


def test_a_folder_of_images_by_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from selfsup.engine import training

    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    taken = []
    monkeypatch.setattr(training, "train", lambda config: taken.append(config) or tmp_path)
    assert main(["train", "pictures", *TINY[2:]]) == 0
    assert "data=image_folder data.root=pictures" in capsys.readouterr().err
    assert (taken[0].data.name, taken[0].data.root) == ("image_folder", "pictures")
    for words, message in {
        ("nowhere",): "or name a folder of images",
        ("run",): "resume=run",
        ("pictures", "data.root=pictures"): "both name",
        ("method", "moco"): "here method=moco, or name a folder",
    }.items():
        assert main(["train", *words]) == 2
        assert message in capsys.readouterr().err
