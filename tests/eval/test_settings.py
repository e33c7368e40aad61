"""The settings of protocols: below the protocol's name, and under the names that they had before."""

from dataclasses import asdict, dataclass

import pytest

from selfsup.config import load_config
from selfsup.errors import UserError
from selfsup.eval import PROTOCOLS, Record, eval_config, protocol
from selfsup.settings.moved import MOVED, renamed

BASE = ["checkpoint=raw_pixels", "data=shapes"]


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_sets_what_the_new_one_does(old):
    places = [place.split(".") for place in MOVED[old]]
    _, key, name = places[0]
    default = getattr(getattr(eval_config(), key), name)
    value = [7] if isinstance(default, list) else "moco" if old == "eval.probe_protocol" else 7
    with pytest.warns(UserWarning, match=rf"{old} is eval\.{key}\.{name}"):
        config = eval_config(**{old.removeprefix("eval."): value})
    assert config == eval_config(**{key: {name: value} for _, key, name in places})
    with pytest.warns(UserWarning, match=f"{old} is"):
        assert renamed([f"{old}=7", "seed=1"]) == [*(f"{place}=7" for place in MOVED[old]), "seed=1"]


def test_old_and_new_names_from_the_command_line():
    new = load_config(
        [*BASE, "eval.knn.k=[3,5]", "eval.segmentation.images=7", "eval.segmentation_knn.images=7"], kind="evaluate"
    )
    with pytest.warns(UserWarning, match="goes on working"):
        old = load_config([*BASE, "eval.knn_k=[3,5]", "eval.segmentation_images=7"], kind="evaluate")
    assert asdict(old) == asdict(new)
    assert new.eval.of("knn").k == [3, 5]
    with pytest.raises(UserError, match=r"no setting 'eval\.knn\.temperature'"):
        load_config([*BASE, "eval.knn.temperature=0.1"], kind="evaluate")
    with pytest.raises(UserError, match=r"eval\.ridge\.penalties"):
        eval_config(ridge={"penalty": [1.0]})


def test_a_protocol_that_is_registered_later_has_its_settings(monkeypatch):
    monkeypatch.setattr("selfsup.eval.registry.PROTOCOLS", PROTOCOLS)

    @dataclass
    class Own:
        size: int = 3

    @protocol("of_ones_own", Own)
    def measure(subject, settings):
        """One number."""
        yield Record(split="train", metric="size", value=settings.size)

    try:
        config = load_config([*BASE, "eval.of_ones_own.size=4"], kind="evaluate")
        assert config.eval.of("of_ones_own").size == 4
        assert PROTOCOLS["of_ones_own"].summary == "One number."
        with pytest.raises(UserError, match="already taken"):
            protocol("knn")(measure)
    finally:
        del PROTOCOLS["of_ones_own"]


def test_protocols_of_one_key_share_their_settings():
    assert {entry.key for entry in PROTOCOLS.values() if entry.name in ("knn", "knn_loo", "layers")} == {"knn"}
    for entry in PROTOCOLS.values():
        assert entry.summary.endswith(".")
        assert type(eval_config().of(entry)) is (entry.settings or type(None))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("eval.knn.k=[5,0]", r"eval\.knn\.k is \[5, 0\].*at least 1"),
        ("eval.knn.temperatures=[0]", r"eval\.knn\.temperatures .*above 0"),
        ("eval.few_shot.ways=1", r"eval\.few_shot\.ways is 1.*at least 2"),
        ("eval.fine_tune.layer_decay=1.5", r"eval\.fine_tune\.layer_decay.*at most 1"),
        ("eval.linear_probe.paper=mocco", r"eval\.linear_probe\.paper.*Did you mean 'moco'"),
    ],
)
def test_a_value_out_of_its_range_is_found_before_anything_is_read(word, message):
    with pytest.raises(UserError, match=message):
        load_config([*BASE, word], kind="evaluate")
