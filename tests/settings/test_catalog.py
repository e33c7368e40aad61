"""Names are taken as people write them, and what there is, is read from the files without importing them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import selfsup.data
import selfsup.methods  # noqa: F401 - fills the registries
from selfsup.config import TrainConfig, load_config, schema_of
from selfsup.errors import UserError
from selfsup.eval import PROTOCOLS
from selfsup.registry import REGISTRIES, Registry, find, methods, negatives, objectives, sources
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


@pytest.mark.parametrize(
    ("group", "registry"), [("method", methods), ("data", sources), ("objective", objectives), ("negatives", negatives)]
)
def test_what_is_read_from_the_files_is_what_they_register(group: str, registry: Registry) -> None:
    listed = catalog.listed(group)
    own = [name for name in registry if registry[name].target.__module__.startswith("selfsup.")]
    assert sorted(listed) == own
    for name in own:
        assert listed[name].summary == registry[name].summary
        assert listed[name].settings == registry[name].config.__name__
        assert listed[name].over == registry[name].over
    assert {o: e.name for e in listed.values() for o in e.also} == registry.other_names


def test_the_settings_read_from_the_files_are_those_that_there_are() -> None:
    first = {"method": "simclr", "data": "shapes", "objective": "none", "negatives": "none"}
    for names in itertools.zip_longest(*(catalog.listed(group) for group in first)):
        chosen = {group: name or first[group] for group, name in zip(first, names, strict=True)}
        live = Schema(TrainConfig, {group: REGISTRIES[group][name].config for group, name in chosen.items()}).known()
        soon = early.known("train", chosen)
        assert list(soon.keys) == list(live.keys)
        assert [key for key, kind in soon.keys.items() if kind == "bool"] == [
            k for k, v in live.keys.items() if v == "bool"
        ]
        # not those that other tests of this process have registered
        own = {n: keys for n, keys in live.others["method"].items() if n in catalog.listed("method")}
        assert (soon.sections, soon.others["method"]) == (live.sections, own)


def test_so_are_those_of_an_evaluation() -> None:
    live = schema_of("evaluate", {"data": {"name": "digits"}}).known()
    soon = early.known("evaluate", {"data": "digits"})
    # not those that other tests of this process have registered
    foreign = {f"eval.{entry.key}" for entry in PROTOCOLS.values() if not entry.run.__module__.startswith("selfsup.")}
    assert set(soon.keys) == {key for key in live.keys if key.rpartition(".")[0] not in foreign}


def test_the_protocols_read_from_the_files_are_those_that_there_are() -> None:
    own = {n: p for n, p in PROTOCOLS.items() if p.run.__module__.startswith("selfsup.")}
    assert {n: (e.summary, e.settings, e.key) for n, e in catalog.listed("protocol").items()} == {
        n: (p.summary, "" if p.settings is None else p.settings.__name__, p.key) for n, p in own.items()
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
    early.refuse_mistakes(["resume=runs/some", "method.queue_size=8", "method.own=1"])
    early.refuse_mistakes(["checkpoint=runs/some", "data.own=1", "eval.knn_k=3"], "evaluate")
    early.refuse_mistakes(["hydra.searchpath=[file://own]", "method=own"])


def test_a_preset_that_does_not_go_with_the_chosen_images_is_a_sentence() -> None:
    with pytest.raises(
        UserError, match=r"^experiment=imagenet/moco sets data\.source_size, which the chosen data does"
    ):
        load_config(["experiment=imagenet/moco", "data=cifar10"])
