"""Names are taken as people write them, and checkpoints and folders where they stand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY

import selfsup.data
import selfsup.methods  # noqa: F401 - fills the registries
from selfsup import catalog
from selfsup.cli import main
from selfsup.config import load_config
from selfsup.errors import UserError
from selfsup.registry import Registry, find, methods, sources


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("SimCLR", "simclr"),
        ("mocov2", "moco"),
        ("moco-v2", "moco"),
        ("moco_v2", "moco"),
        ("MoCo v2", "moco"),
        ("MoCo", "moco"),
        ("mocov1", "moco_v1"),
        ("moco-v3", "moco_v3"),
        ("barlowtwins", "barlow_twins"),
        ("Barlow Twins", "barlow_twins"),
        ("w-mse", "wmse"),
        ("VICReg", "vicreg"),
    ],
)
def test_a_method_is_found(written: str, meant: str) -> None:
    assert find(written, methods, methods.other_names) == meant
    assert methods[written].name == meant


@given(st.sampled_from(list(methods)), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_any_spelling_of_a_name_is_that_name(name: str, random) -> None:
    letters = [random.choice([c.upper(), c]) for c in name.replace("_", random.choice(["", "-", " ", "_"]))]
    assert find("".join(letters), methods, methods.other_names) == name


def test_a_word_that_fits_two_names_both() -> None:
    with pytest.raises(UserError, match="may be a_b or ab; write"):
        find("A-B", ["a_b", "ab", "abc"])
    assert find("a_b", ["a_b", "ab"]) == "a_b"
    assert find("abcd", ["a_b", "ab"]) == "abcd"
    assert find("x", ["x", "y"], {"x": "y"}) == "x", "a name goes before what else something is called"


def test_a_configuration_takes_them() -> None:
    written = ["method=MoCo-v2", "data=CIFAR-10", "backbone=ResNet-50", "augment=MoCo-v1", "optimizer=AdamW"]
    meant = ["method=moco", "data=cifar10", "backbone=resnet50", "augment=moco_v1", "optimizer=adamw"]
    assert load_config(written) == load_config(meant)


@pytest.mark.parametrize(("group", "registry"), [("method", methods), ("data", sources)])
def test_what_is_read_from_the_files_is_what_they_register(group: str, registry: Registry) -> None:
    listed = catalog.listed(group)
    own = [name for name in registry if registry[name].target.__module__.startswith("selfsup.")]
    assert sorted(listed) == own
    for name in own:
        assert listed[name].summary == registry[name].summary
        assert listed[name].settings == registry[name].config.__name__
    assert {o: e.name for e in listed.values() for o in e.also} == registry.other_names


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


def test_options_stand_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = ["data=digits", "data.limit=60", "eval.knn_k=[3]", f"run_dir={tmp_path}"]
    for number, words in enumerate(
        (
            ["raw_pixels", "--only", "knn", *about],
            ["--only=knn", *about, "raw_pixels"],
            [*about, "raw_pixels", "--only", "knn"],
            [about[0], "--only", "knn", "checkpoint=raw_pixels", *about[1:]],
        )
    ):
        assert main(["evaluate", *words]) == 0, number
    assert capsys.readouterr().out.count("knn ") == 4


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
        ("nowhere",): "'nowhere' is no folder",
        ("run",): "resume=run",
        ("pictures", "data.root=pictures"): "both name",
        ("method", "moco"): "'moco' is no folder",
    }.items():
        assert main(["train", *words]) == 2
        assert message in capsys.readouterr().err
