"""A record and the flat JSON that it is in a file."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsup.eval import Record, Spread, add_results, read_results

KNN = {"protocol": "knn", "split": "test", "metric": "top1", "value": 0.5, "k": 20, "recall": 1.0, "seconds": 2.0}
NAMES = st.sampled_from(["k", "grid", "epoch", "seconds", "chosen", "mine"])
VALUES = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))


@settings(max_examples=30, deadline=None)
@given(
    how=st.dictionaries(NAMES.filter(lambda n: n not in ("seconds", "chosen")), VALUES),
    found=st.dictionaries(st.sampled_from(["seconds", "chosen", "curve", "note"]), VALUES),
    spread=st.one_of(st.none(), st.builds(Spread, st.floats(0, 1), st.sampled_from(["std", "interval"]))),
    unit=st.sampled_from(["", "fraction", "pixels"]),
)
def test_a_record_comes_back_from_its_json(how, found, spread, unit):
    record = Record(
        protocol="own", split="test", metric="odd", value=0.5, unit=unit, spread=spread, how=how, found=found
    )
    back = Record.from_flat(json.loads(json.dumps(record.flat())))
    assert (back.unit, back.spread, back.how, back.found) == (unit, spread, how, found)
    assert back == record
    assert back.identity == record.identity


def test_a_file_of_before_is_read_and_written_as_it_was(tmp_path):
    old = [
        KNN,
        {**KNN, "protocol": "linear_probe", "std": 0.01, "values": [0.4, 0.6], "seeds": [0, 1], "epoch": 3},
        {**KNN, "protocol": "few_shot", "interval": 0.02, "shots": 1},
        {**KNN, "checkpoint": "timm:x", "mean": [0.5], "std": [0.2], "pretrained": True},
        {**KNN, "protocol": "attention", "metric": "attention_distance", "per_head": [1.0], "layer": "blocks.0"},
    ]
    (tmp_path / "results.json").write_text(json.dumps({"results": old}))
    records = read_results(tmp_path)
    assert records == old
    assert [record.spread for record in records] == [None, Spread(0.01), Spread(0.02, "interval"), None, None]
    assert records[3].how["std"] == [0.2]
    add_results(tmp_path, old)
    assert json.loads((tmp_path / "results.json").read_text()) == {"results": old}


def test_what_was_found_makes_no_other_measurement_and_how_does():
    record = Record.from_flat(KNN)
    assert record.identity == Record.from_flat({**KNN, "recall": 0.5, "value": 0.1, "std": 0.2}).identity
    assert record.identity != Record.from_flat({**KNN, "k": 5}).identity
    assert record.identity != Record.from_flat({**KNN, "note": 5}).identity
    assert record.identity == Record.from_flat({**KNN, "note": 5, "found": ["note"]}).identity


def test_runs_are_compared_under_the_same_conditions_whatever_was_judged():
    first = Record.from_flat({**KNN, "seed": 0, "epoch": 3, "dim": 4})
    assert first.conditions == Record.from_flat({**KNN, "seed": 1, "epoch": 9, "dim": 8, "value": 0.1}).conditions
    for other in ({"k": 5}, {"split": "holdout"}, {"crop": "other"}):
        assert first.conditions != Record.from_flat({**KNN, **other}).conditions


def test_the_spread_of_seeds_does_not_hide_the_statistics_of_the_input():
    record = Record(split="test", metric="top1", value=0.5, spread=Spread(0.1), how={"std": [0.2, 0.3]})
    flat = Record.from_flat({**record.flat(), "protocol": "ridge"}).flat()
    assert (flat["std"], flat["input_std"]) == (0.1, [0.2, 0.3])


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (Record(split="test", metric="top1", value=0.8125), "81.25 %"),
        (Record(split="test", metric="recall@5", value=0.5, spread=Spread(0.01)), "50.00 ± 1.00 %"),
        (Record(split="test", metric="uniformity", value=-2.34567), "-2.346"),
        (Record(split="test", metric="own", value=0.5, unit="fraction"), "50.00 %"),
    ],
)
def test_fractions_are_written_in_percent(record, text):
    assert record.text() == text
