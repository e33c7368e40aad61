"""Names are taken as people write them, and checkpoints and folders where they stand."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY

import selfsup.data
import selfsup.methods  # noqa: F401 - fills the registries
from selfsup.cli import main
from selfsup.config import TrainConfig, load_config
from selfsup.errors import UserError
from selfsup.eval import PROTOCOLS
from selfsup.registry import REGISTRIES, Registry, find, methods, sources
from selfsup.settings import catalog, early
from selfsup.settings.overrides import Schema


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


def test_the_settings_read_from_the_files_are_those_that_there_are() -> None:
    for method, source in itertools.zip_longest(catalog.listed("method"), catalog.listed("data"), fillvalue=None):
        chosen = {"method": method or "simclr", "data": source or "shapes"}
        live = Schema(TrainConfig, {group: REGISTRIES[group][name].config for group, name in chosen.items()})
        named = {group: {catalog.listed(group)[name].settings} for group, name in chosen.items()}
        assert [key for key, _ in early.settings("TrainConfig", named)] == live.keys()


def test_the_protocols_read_from_the_files_are_those_that_there_are() -> None:
    own = {n: p for n, p in PROTOCOLS.items() if p.run.__module__.startswith("selfsup.")}
    assert {n: (e.summary, e.settings) for n, e in catalog.listed("protocol").items()} == {
        n: (p.summary, "" if p.settings is None else p.settings.__name__) for n, p in own.items()
    }


TYPOS = ["trainer.max_epoch=3", "lr=1", "metod=moco", "method=simclrr", "data=shape", "method.queue_sise=9", "epochs=3"]


@pytest.mark.parametrize("word", [*TYPOS, "optimizer.lrr=1", "experiment=demmo"])
def test_an_early_mistake_is_told_as_a_late_one(word: str) -> None:
    words = ["method=moco", "data=shapes", word]
    with pytest.raises(UserError) as late:
        load_config(words)
    with pytest.raises(UserError) as soon:
        early.refuse_mistakes(words)
    assert str(soon.value) == str(late.value)


def test_what_is_right_passes_early() -> None:
    free = ["augment.override.hue=0.1", "backbone.kwargs.depth=3", "optimizer={lr: 1}", "++method.warmth=1", "seed=3"]
    early.refuse_mistakes(["method=MoCo", "method.queue_size=8", "backbone=ResNet18", "augment={counts: [2]}", *free])
    early.refuse_mistakes(["experiment=demo_moco", "method.queue_size=8"])
    early.refuse_mistakes(["resume=runs/some", "method.queue_size=8"])
    early.refuse_mistakes(["hydra.searchpath=[file://own]", "method=own"])


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
    about = ["data=digits", "data.limit=60", "eval.knn.k=[3]", f"run_dir={tmp_path}"]
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
        ("nowhere",): "or name a folder of images",
        ("run",): "resume=run",
        ("pictures", "data.root=pictures"): "both name",
        ("method", "moco"): "here method=moco, or name a folder",
    }.items():
        assert main(["train", *words]) == 2
        assert message in capsys.readouterr().err
