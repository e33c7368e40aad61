"""``key=value`` becomes a configuration: values as they stand, keys that are named when they are wrong."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsup.config import from_values, load_config, to_yaml
from selfsup.errors import UserError
from selfsup.methods import BYOLConfig
from selfsup.settings import check
from selfsup.settings.values import from_text, read_yaml

NASTY = [
    "~/pictures",
    "my pictures",
    "Bilder für Jürgen",
    "写真",
    "it's",
    "'quoted'",
    '"quoted"',
    "a&b#c=d",
    "a,b",
    "[1, 2",
    "{a: b}",
    "(a)",
    "choice(a,b)",
    "a:b",
    "$HOME",
    "${oc.env:HOME}",
    "${data.name}",
    "${",
    r"C:\Users\me\pictures",
    "a\\",
    "50%",
    "%24",
    "@a",
    "a*?b",
    " a ",
    "",
    "Null",
    "none",
    "~",
    "true",
    "007",
    "1e3",
    "2024-01-01",
    "???",
    "- a",
    "a\u2028b",
    "!!python/name:os.system",
]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) | st.text(
    "'\"\\${}[](),:=%?!~ #&@\n\tüa1", max_size=12
)
BASE: dict[str, Any] = {"method": {"name": "simclr"}, "data": {"name": "image_folder"}}


@pytest.mark.parametrize("text", NASTY)
def test_text_is_taken_as_it_stands_from_the_shell_to_the_file_and_back(text: str, tmp_path: Path) -> None:
    config = load_config(["data=image_folder", f"data.root={text}", f"backbone.kwargs.path=/{text}"])
    assert config.data.root == text
    assert config.backbone.kwargs["path"] == f"/{text}"
    (tmp_path / "config.yaml").write_text(to_yaml(config), "utf-8")
    assert load_config(file=tmp_path / "config.yaml") == config
    again = load_config([f"run_dir={text}"], file=tmp_path / "config.yaml")
    assert (again.run_dir, again.data.root) == (text, text)


@settings(max_examples=60, deadline=None)
@given(TEXT)
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    config = from_values(BASE, [f"run_dir={text}", f"data.cache={text}"])
    assert config.run_dir == config.data.cache == (None if text == "null" else text)
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(to_yaml(config).encode())
    assert load_config(file=file) == config


def test_an_environment_variable_stays_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "unseen-7")
    config = from_values({**BASE, "run_dir": "${oc.env:SECRET}"}, ["backbone.kwargs={a: '${oc.env:SECRET}'}"])
    assert "unseen-7" not in to_yaml(config)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("augment.counts=7", [7]),
        ("augment.counts=2,4", [2, 4]),
        ("augment.counts=[2,4]", [2, 4]),
        ("data.mean=0.5", [0.5]),
        ("data.root=[a b, ~/ü]", ["a b", "~/ü"]),
        ("data.root=a,b", "a,b"),
        ("data.root=./[a]", "./[a]"),
        ("data.root=null", None),
        ("augment.sizes=null", None),
        ("augment.sizes=[[24,48],12]", [[24, 48], 12]),
        ("data.image_size=[24,48]", [24, 48]),
        ("data.image_size=[24,24]", 24),
        ("data.limit=NULL", None),
        ("optimizer.lr=1e-3", 0.001),
        ("optimizer.milestones=1", [1.0]),
        ("trainer.progress=no", False),
        ("trainer.devices=2", 2),
        ("trainer.devices=0,1", "0,1"),
        ("trainer.devices=[0,1]", [0, 1]),
        ("trainer.precision=32", "32"),
        ("augment.override={scale:[0.2,1.0], blur_p: 0}", {"scale": [0.2, 1.0], "blur_p": 0}),
        ("augment.override.scale=[0.2,1]", {"scale": [0.2, 1]}),
        ("backbone.kwargs.a='5'", {"a": "5"}),
        ("augment.extra={name: RandomErasing}", [{"name": "RandomErasing"}]),
    ],
)
def test_a_value_has_the_type_of_its_setting(word: str, value: Any) -> None:
    config = from_values(BASE, [word])
    section, name = word.partition("=")[0].split(".")[:2]
    assert getattr(getattr(config, section), name) == value


def test_knn_takes_a_single_k() -> None:
    assert from_text("7", list[int], "eval.knn.k") == [7]
    assert load_config(["checkpoint=untrained", "eval.knn.k=7"], kind="evaluate").eval.knn.k == [7]


MEANT = {
    "lr=0.1": "'optimizer.lr=0.1'",
    "learning_rate=0.1": "'optimizer.lr=0.1'",
    "trainer.lr=0.1": "'optimizer.lr=0.1'",
    "epochs=10": "'trainer.max_epochs=10'",
    "max_epoch=10": "'trainer.max_epochs=10'",
    "temperature=0.1": "'method.temperature=0.1'",
    "num_workers=4": "'data.workers=4'",
    "batchsize=9": "'batch_size=9'",
    "optimiser.lr=1": "'optimizer.lr=1'",
    "model=resnet18": "'backbone=resnet18'",
    "backbone=resnet34": "backbone.name=resnet34",
    "optimizer=adamp": "optimizer.name=adamp",
    "data=./pictures": "data=image_folder data.root=./pictures",
    "logger=wandb": "logger.wandb=true",
    "online=5": "online.every_epochs=",
    "method.queue_size=9": "these have one: all4one, densecl",
    "moco": "method=moco",
    "trainer.max_epochs=many": "it must be a whole number",
    "trainer.max_epochs=1.5": "it must be a whole number",
    "seed=0,1": "--multirun",
    "optimizer.lr=": "it must be a number",
    "trainer.progress=maybe": "true or false",
    "data.mean=[a]": "data.mean is 'a'",
    "data.image_size=[1,2,3]": "one whole number, or two as [height, width]",
    "data.image_size=[24,0]": "each of them must be at least 1",
    "data.limit=x": "a whole number, or null",
    "augment.override=5": "a dictionary",
    "method.name=moco": "choose it by method=moco",
    "=5": "not a setting",
}


@pytest.mark.parametrize("word", MEANT)
def test_a_mistake_names_what_was_meant(word: str) -> None:
    with pytest.raises(UserError) as error:
        load_config([word])
    assert MEANT[word] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method: simclr\ndata: {name: shapes}", "method is 'simclr'"),
        ("method: {name: simclr}\ndata: {name: shapes}\nbatchsize: 3", "'batch_size'"),
        ("method: {name: simclr}\ndata: {name: shapes}\nseed: {a: b}", "seed is {'a': 'b'}"),
        ("method: {name: simclr}\ndata: {name: shapes}\nseed: 1\nseed: 2", "'seed' stands in it twice"),
        ("method: !!python/object/apply:os.system [ls]\ndata: 1", "could not determine a constructor"),
        ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)), "more than 100000"),
        (
            "a0: &a0 {x0: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60)),
            "c.yaml",
        ),
        ("a: &a [*a]", "nested too deeply"),
        ("[" * 1500, "nested too deeply"),
        ("just words", "names no method"),
    ],
)
def test_a_foreign_file_is_read_safely(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r".") as error:
        load_config(file=tmp_path / "c.yaml")
    assert said in str(error.value)


def test_a_setting_that_not_every_method_has_is_forced() -> None:
    assert load_config(["method=moco", "++method.queue_size=512"]).method.queue_size == 512
    assert load_config(["method=simclr", "++method.queue_size=512"]).method.name == "simclr"


def test_an_entry_of_a_preset_is_taken_out() -> None:
    vit = ["experiment=imagenet/moco_v3_vit"]
    assert load_config(vit).backbone.kwargs == {"num_heads": 12}
    assert load_config([*vit, "~backbone.kwargs.num_heads"]).backbone.kwargs == {}


OUT_OF_RANGE = {
    "method.temperature=-1": "method.temperature is -1.0; it must be above 0.",
    "method.temperature=0": "method.temperature is 0.0; it must be above 0.",
    "method.temperature=nan": "above 0 and finite",
    "method.hidden_dim=0": "at least 1",
    "trainer.max_epochs=0": "trainer.max_epochs is 0; it must be at least 1.",
    "trainer.accumulate=0": "at least 1",
    "trainer.checkpoint_every_steps=0": "at least 1",
    "batch_size=0": "batch_size is 0; it must be at least 1.",
    "data.workers=-1": "at least 0",
    "data.image_size=0": "at least 1",
    "data.holdout=1": "at least 0 and below 1",
    "augment.counts=[2,0]": "augment.counts is [2, 0]; each of them must be at least 1.",
    "optimizer.lr=-0.1": "at least 0",
    "optimizer.lr=inf": "at least 0 and finite",
    "optimizer.scaling=linaer": "one of linear, sqrt, none. Did you mean 'linear'?",
}


@pytest.mark.parametrize("word", OUT_OF_RANGE)
def test_a_value_out_of_its_range_is_refused_before_data_is_read(word: str) -> None:
    with pytest.raises(UserError) as error:
        from_values(BASE, [word])
    assert word.partition("=")[0] in str(error.value)
    assert OUT_OF_RANGE[word] in str(error.value)


def test_ranges_hold_in_python_too() -> None:
    with pytest.raises(UserError, match=r"method\.momentum is 2; it must be at least 0 and at most 1\."):
        BYOLConfig(momentum=2)
    config = from_values(BASE)
    config.trainer.max_epochs = 0
    with pytest.raises(UserError, match=r"trainer\.max_epochs is 0"):
        check(config)


def test_runs_saved_before_go_on_with_the_blur_and_the_lars_of_then():
    config = load_config(["method=simclr", "data=shapes", "optimizer=lars", "augment.override.blur_p=0.3"])
    assert "blur_kernel" not in from_values(asdict(config)).augment.override
    saved = asdict(config)
    del saved["trainer"]["batchnorm_ranks"]
    then = from_values(saved)
    assert then.augment.override == {"blur_p": 0.3, "blur_kernel": 0.1}
    assert then.optimizer.kwargs == {"norms_apart": True, "eps": 1e-8, "adapt": True}
    saved["augment"]["operations"], saved["optimizer"]["weight_decay"] = ["flip"], 0.0
    then = from_values(saved)
    assert then.augment.override == {"blur_p": 0.3}
    assert then.optimizer.kwargs["adapt"] is False, "timm's does not where nothing decays"


def test_a_pipe_is_no_configuration_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read as a configuration: it is no file"):
        read_yaml(tmp_path / "config.yaml")
